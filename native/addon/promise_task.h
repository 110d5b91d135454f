// A task that settles a Promise with the result of an engine call.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "addon/errors.h"
#include "addon/work_queue.h"
#include "engine/error.h"

namespace pcow::addon {

template <typename T>
struct ToJs {
  static Napi::Value convert(Napi::Env env, T& value) {
    return Napi::Number::New(env, static_cast<double>(value));
  }
};

template <>
struct ToJs<bool> {
  static Napi::Value convert(Napi::Env env, bool value) { return Napi::Boolean::New(env, value); }
};

template <typename T>
class PromiseTask : public Task {
 public:
  using Work = std::function<Result<T>()>;

  // JavaScript thread.
  PromiseTask(Napi::Env env, Work work)
      : deferred_(Napi::Promise::Deferred::New(env)), work_(std::move(work)) {}

  // JavaScript thread.
  Napi::Promise promise() const { return deferred_.Promise(); }
  // JavaScript thread. The buffer that the work reads or fills lives as long as the task.
  void keep(Napi::Object object) { kept_ = Napi::Persistent(object); }

  // Worker thread. The work's leases are returned here, because returning the last lease may start
  // a close or free the image.
  void run() override {
    result_.emplace(work_());
    work_ = nullptr;
  }

  // JavaScript thread.
  void settle(Napi::Env env) override {
    if (!result_->ok()) {
      deferred_.Reject(error_to_js(env, result_->error()));
    } else if constexpr (std::is_void_v<T>) {
      deferred_.Resolve(env.Undefined());
    } else {
      deferred_.Resolve(ToJs<T>::convert(env, **result_));
    }
  }

 private:
  const Napi::Promise::Deferred deferred_;
  Work work_;
  std::optional<Result<T>> result_;
  Napi::ObjectReference kept_;
};

// JavaScript thread. Returns a Promise that is already rejected.
inline Napi::Value rejected(Napi::Env env, const Error& error) {
  auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Reject(error_to_js(env, error));
  return deferred.Promise();
}

// JavaScript thread. Hands a PromiseTask to the lane and returns its Promise.
template <typename SomePromiseTask>
Napi::Value start(WorkQueue& queue, Lane lane, std::unique_ptr<SomePromiseTask> task) {
  Napi::Promise promise = task->promise();
  queue.expect();
  queue.submit(lane, std::move(task));
  return promise;
}

}  // namespace pcow::addon
