#include "addon/errors.h"

namespace pcow::addon {

Napi::Value error_to_js(Napi::Env env, const Error& error) {
  Napi::Object object = Napi::Error::New(env, error.message).Value();
  object.Set("code", code_name(error.code));
  object.Set("errno", error.err);
  return object;
}

Napi::Value throw_in_js(Napi::Env env, const Error& error) {
  napi_throw(env, error_to_js(env, error));
  return {};
}

}  // namespace pcow::addon
