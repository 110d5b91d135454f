// The lock of an image directory: at most one mount serves the directory. The kernel releases the
// lock when the process ends.
#pragma once

#include <napi.h>

namespace pcow::addon {

// JavaScript thread.
void export_directory_lock(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
