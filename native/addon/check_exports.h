// Checking images without opening them: see src/engine/check.ts.
#pragma once

#include <napi.h>

namespace pcow::addon {

void export_check(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
