// What `pcow run` needs from the system: src/engine/run.ts.
#pragma once

#include <napi.h>

namespace pcow::addon {

// JavaScript thread.
void export_run(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
