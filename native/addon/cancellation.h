// The native side of an AbortSignal: a flag that JavaScript sets and the engine's progress callback
// reads.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

namespace pcow::addon {

class Cancellation : public Napi::ObjectWrap<Cancellation> {
 public:
  using Flag = std::shared_ptr<std::atomic<bool>>;

  static Napi::Function define(Napi::Env env);
  explicit Cancellation(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Cancellation>(info) {}

  // JavaScript thread. Any thread may read the flag.
  Flag flag() const { return flag_; }

 private:
  void cancel(const Napi::CallbackInfo&) { flag_->store(true); }

  const Flag flag_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace pcow::addon
