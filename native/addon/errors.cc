#include "addon/errors.h"

namespace pcow::addon {

Napi::Object remote_to_js(Napi::Env env, const RemoteBlock& remote) {
  auto object = Napi::Object::New(env);
  object.Set("path", remote.path);
  object.Set("uuid", remote.uuid);
  object.Set("layer", static_cast<double>(remote.layer));
  object.Set("block", static_cast<double>(remote.block));
  return object;
}

Napi::Value error_to_js(Napi::Env env, const Error& error) {
  Napi::Object object = Napi::Error::New(env, error.message).Value();
  object.Set("code", code_name(error.code));
  object.Set("errno", error.err);
  if (error.remote) object.Set("remote", remote_to_js(env, *error.remote));
  return object;
}

Napi::Value throw_in_js(Napi::Env env, const Error& error) {
  napi_throw(env, error_to_js(env, error));
  return {};
}

}  // namespace pcow::addon
