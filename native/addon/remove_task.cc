#include "addon/remove_task.h"

#include <utility>

namespace pcow::addon {

RemoveTask::RemoveTask(Napi::Env env, WorkQueue& queue, SharedImage::Lease lease, std::string name,
                       Cancellation::Flag cancelled, Napi::Function on_progress)
    : PromiseTask<void>(env,
                        // std::function wants a closure that can be copied, a lease can't be.
                        [this, image = std::make_shared<SharedImage::Lease>(std::move(lease)), name] {
                          return (*image)->remove(
                              name, [this](uint64_t done, uint64_t total) { return progress(done, total); });
                        }),
      queue_(queue),
      cancelled_(std::move(cancelled)) {
  if (!on_progress.IsEmpty()) on_progress_ = Napi::Persistent(on_progress);
}

bool RemoveTask::progress(uint64_t done, uint64_t total) {
  if (!on_progress_.IsEmpty()) {
    total_.store(total);
    done_.store(done);
    if (!report_asked_.exchange(true)) queue_.ask_report(this);
  }
  return !cancelled_->load();
}

void RemoveTask::report(Napi::Env env) {
  report_asked_.store(false);
  const auto total = static_cast<double>(total_.load());
  const auto done = static_cast<double>(done_.load());
  on_progress_.Call({Napi::Number::New(env, done), Napi::Number::New(env, total)});
}

}  // namespace pcow::addon
