#include "addon/errors.h"

namespace pcow::addon {

Napi::Value error_to_js(Napi::Env env, const Error& error) {
  Napi::Object object = Napi::Error::New(env, error.message).Value();
  object.Set("code", code_name(error.code));
  object.Set("errno", error.err);
  if (error.remote) {
    auto remote = Napi::Object::New(env);
    remote.Set("path", error.remote->path);
    remote.Set("uuid", error.remote->uuid);
    remote.Set("layer", static_cast<double>(error.remote->layer));
    remote.Set("block", static_cast<double>(error.remote->block));
    object.Set("remote", remote);
  }
  return object;
}

Napi::Value throw_in_js(Napi::Env env, const Error& error) {
  napi_throw(env, error_to_js(env, error));
  return {};
}

}  // namespace pcow::addon
