// Converts the engine's descriptions to the plain objects of src/engine/types.ts.
#pragma once

#include <napi.h>

#include <vector>

#include "engine/check/check.h"
#include "engine/check/scrub.h"
#include "engine/image/image.h"

namespace pcow::addon {

// All functions: JavaScript thread.
// All counts and sizes of the engine are below 2^53.
inline Napi::Value number(Napi::Env env, uint64_t value) {
  return Napi::Number::New(env, static_cast<double>(value));
}

Napi::Value info_to_js(Napi::Env env, const ImageInfo& info);
Napi::Value snapshot_to_js(Napi::Env env, const SnapshotInfo& snapshot);

Napi::Value layer_to_js(Napi::Env env, const LayerInfo& layer);
// The first `count` links.
Napi::Value chain_to_js(Napi::Env env, const std::vector<LayerRef>& chain, size_t count);
// NativeExtentBatch of src/engine/native.ts.
Napi::Value extents_to_js(Napi::Env env, const ExtentBatch& batch);
Napi::Value findings_to_js(Napi::Env env, const std::vector<Finding>& findings);
Napi::Value losses_to_js(Napi::Env env, const std::vector<Loss>& losses);
Napi::Value scrub_to_js(Napi::Env env, const ScrubReport& report);

}  // namespace pcow::addon
