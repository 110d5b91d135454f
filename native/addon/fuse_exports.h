// The functions of the native operations table that src/engine/native-operations.ts calls.
#pragma once

#include <napi.h>

namespace pcow::addon {

// JavaScript thread.
void export_fuse(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
