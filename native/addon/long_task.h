// Work that may take minutes: it reports progress and can be cancelled.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "addon/cancellation.h"
#include "addon/promise_task.h"
#include "engine/image/image.h"

namespace pcow::addon {

template <typename T>
class LongTask : public PromiseTask<T> {
 public:
  using LongWork = std::function<Result<T>(const Progress&)>;

  // JavaScript thread. `cancellation`, and `on_progress` or null, as src/engine/long.ts passes
  // them.
  LongTask(Napi::Env env, WorkQueue& queue, const Napi::Value& cancellation,
           const Napi::Value& on_progress, LongWork work)
      : PromiseTask<T>(
            env,
            [this, work = std::move(work)] {
              return work([this](uint64_t done, uint64_t total) { return progress(done, total); });
            }),
        queue_(queue),
        cancelled_(Cancellation::Unwrap(cancellation.As<Napi::Object>())->flag()) {
    if (!on_progress.IsNull()) on_progress_ = Napi::Persistent(on_progress.As<Napi::Function>());
  }

  // JavaScript thread.
  void report(Napi::Env env) override {
    report_asked_.store(false);
    const auto total = static_cast<double>(total_.load());
    const auto done = static_cast<double>(done_.load());
    on_progress_.Call({Napi::Number::New(env, done), Napi::Number::New(env, total)});
  }
  void cancel() override { cancelled_->store(true); }

 private:
  // Worker thread, called by the engine. False: stop.
  bool progress(uint64_t done, uint64_t total) {
    if (!on_progress_.IsEmpty()) {
      total_.store(total);
      done_.store(done);
      if (!report_asked_.exchange(true)) queue_.ask_report(this);
    }
    return !cancelled_->load();
  }

  WorkQueue& queue_;
  const Cancellation::Flag cancelled_;
  Napi::FunctionReference on_progress_;

  // The worker writes these, and the JavaScript thread reads them. A report is requested only if
  // none is pending, so that the engine may call progress() as often as it likes.
  std::atomic<uint64_t> done_{0};
  std::atomic<uint64_t> total_{0};
  std::atomic<bool> report_asked_{false};
};

}  // namespace pcow::addon
