// Deleting a snapshot: the one operation that may take minutes, so it reports progress and can be cancelled.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "addon/cancellation.h"
#include "addon/promise_task.h"
#include "addon/shared_image.h"

namespace pcow::addon {

class RemoveTask : public PromiseTask<void> {
 public:
  // JavaScript thread. `on_progress` may be empty.
  RemoveTask(Napi::Env env, WorkQueue& queue, SharedImage::Lease lease, std::string name, Cancellation::Flag cancelled,
             Napi::Function on_progress);

  // JavaScript thread.
  void report(Napi::Env env) override;
  void cancel() override { cancelled_->store(true); }

 private:
  // Worker thread, called by the engine. False: stop.
  bool progress(uint64_t done, uint64_t total);

  WorkQueue& queue_;
  const Cancellation::Flag cancelled_;
  Napi::FunctionReference on_progress_;

  // Written by the worker, read by the JavaScript thread. A report is asked for only when none is on its way, so that the
  // engine may call progress() as often as it likes.
  std::atomic<uint64_t> done_{0};
  std::atomic<uint64_t> total_{0};
  std::atomic<bool> report_asked_{false};
};

}  // namespace pcow::addon
