// How much of the process's memory, and how many of its mappings, the monitor may use.
#pragma once

#include "monitor/session.h"

namespace pcow {

Session::Limits process_limits();

}  // namespace pcow
