// Converts JavaScript arguments for the engine. src/engine/validate.ts has checked them, so nothing
// is checked again here.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/image/image.h"

namespace pcow::addon {

inline uint64_t bytes_of(const Napi::Value& value) {
  return static_cast<uint64_t>(value.ToNumber().DoubleValue());
}

inline std::string text_of(const Napi::Value& value) {
  return value.As<Napi::String>().Utf8Value();
}

inline std::vector<std::string> texts_of(const Napi::Value& value) {
  auto array = value.As<Napi::Array>();
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < array.Length(); ++i) texts.push_back(text_of(array.Get(i)));
  return texts;
}

inline bool flag_of(const Napi::Value& value) { return value.ToBoolean().Value(); }

// NativeBase of src/engine/native.ts, not null.
inline BaseSpec base_of(const Napi::Object& base) {
  BaseSpec spec;
  spec.path = text_of(base.Get("path"));
  spec.snapshot = text_of(base.Get("snapshot"));
  spec.layer = bytes_of(base.Get("layer"));
  return spec;
}

}  // namespace pcow::addon
