// The attach server for JavaScript: NativeAttachServer in src/engine/native.ts.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/attach_server.h"

namespace pcow::addon {

// All methods run on the JavaScript thread. They return at once; an event reports the result.
class AttachServerWrap : public Napi::ObjectWrap<AttachServerWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  // `path`, `store_budget` (bytes), `on_event`. Throws if it cannot listen at `path`.
  explicit AttachServerWrap(const Napi::CallbackInfo& info);

 private:
  void hand_over(const Napi::CallbackInfo& info);
  void confirm(const Napi::CallbackInfo& info);
  void refuse(const Napi::CallbackInfo& info);
  void give_bases(const Napi::CallbackInfo& info);
  void request(const Napi::CallbackInfo& info);
  void share(const Napi::CallbackInfo& info);
  Napi::Value store(const Napi::CallbackInfo& info);
  void fetched(const Napi::CallbackInfo& info);
  void released(const Napi::CallbackInfo& info);
  void look(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);
  void stop(const Napi::CallbackInfo& info);

  std::shared_ptr<AttachServer> server_;
};

}  // namespace pcow::addon
