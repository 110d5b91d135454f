// What a daemon needs of the system beyond Node: word to its service manager, and another log file under open descriptors.
#pragma once

#include <napi.h>

namespace pcow::addon {

void export_daemon(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
