// Compression of single buffers, outside the JavaScript thread: the pieces of layers in registries
// (docs/registry.md). Node 20 has no zstd.
#pragma once

#include <napi.h>

namespace pcow::addon {

void export_zstd(Napi::Env env, Napi::Object exports);

}  // namespace pcow::addon
