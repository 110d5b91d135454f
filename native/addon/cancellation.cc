#include "addon/cancellation.h"

namespace pcow::addon {

Napi::Function Cancellation::define(Napi::Env env) {
  return DefineClass(env, "Cancellation", {InstanceMethod<&Cancellation::cancel>("cancel")});
}

}  // namespace pcow::addon
