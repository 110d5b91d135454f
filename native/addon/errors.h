// The engine's errors in JavaScript: an Error with `code` ("PCOW_LOCKED"), `errno` (positive) and a
// message; for PCOW_REMOTE also `remote`. src/engine/errors.ts makes a PcowError from it.
#pragma once

#include <napi.h>

#include "engine/error.h"

namespace pcow::addon {

// All functions: JavaScript thread.
// As `remote` of an error.
Napi::Object remote_to_js(Napi::Env env, const RemoteBlock& remote);
Napi::Value error_to_js(Napi::Env env, const Error& error);
// Returns an empty value, which a method returns after it has thrown.
Napi::Value throw_in_js(Napi::Env env, const Error& error);

}  // namespace pcow::addon
