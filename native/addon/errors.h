// The engine's errors as JavaScript sees them: an Error with `code` ("PCOW_LOCKED"), `errno` (positive) and a message.
// src/engine/errors.ts makes a PcowError of it.
#pragma once

#include <napi.h>

#include "engine/error.h"

namespace pcow::addon {

// Both: JavaScript thread.
Napi::Value error_to_js(Napi::Env env, const Error& error);
// Returns nothing usable: what a method returns after it threw.
Napi::Value throw_in_js(Napi::Env env, const Error& error);

}  // namespace pcow::addon
