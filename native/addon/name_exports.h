// Names and locks of files for JavaScript: src/engine/names.ts and file-lock.ts.
#pragma once

#include <napi.h>

namespace pcow::addon {

// JavaScript thread.
void export_names(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
