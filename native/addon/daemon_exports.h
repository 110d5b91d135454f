// What a daemon needs from the system in addition to Node: notifying its service manager, and
// changing the log file behind open descriptors.
#pragma once

#include <napi.h>

namespace pcow::addon {

void export_daemon(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
