// The JavaScript object for an open image: NativeImage in src/engine/native.ts. Every method is
// called on the JavaScript thread. Methods that return a Promise do their work on the queue's
// threads.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <utility>

#include "addon/long_task.h"
#include "addon/shared_image.h"
#include "addon/work_queue.h"

namespace pcow::addon {

class ImageWrap : public Napi::ObjectWrap<ImageWrap> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value wrap(Napi::Env env, std::shared_ptr<SharedImage> image);
  static std::shared_ptr<SharedImage> unwrap_image(const Napi::Value& value);

  explicit ImageWrap(const Napi::CallbackInfo& info);
  // Called by the garbage collector. If nothing else uses the image any more it is closed, which
  // syncs, so another thread does it.
  void Finalize(Napi::Env) override { queue_->dispose(std::move(image_)); }

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value size(const Napi::CallbackInfo& info);
  Napi::Value snapshots(const Napi::CallbackInfo& info);
  Napi::Value snapshot_info(const Napi::CallbackInfo& info);
  Napi::Value snapshot_names(const Napi::CallbackInfo& info);
  Napi::Value chain(const Napi::CallbackInfo& info);
  Napi::Value layers(const Napi::CallbackInfo& info);
  Napi::Value layer_of(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value map(const Napi::CallbackInfo& info);
  Napi::Value changes(const Napi::CallbackInfo& info);
  Napi::Value changes_to_base(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value discard(const Napi::CallbackInfo& info);
  Napi::Value sync(const Napi::CallbackInfo& info);
  Napi::Value snapshot(const Napi::CallbackInfo& info);
  Napi::Value rollback(const Napi::CallbackInfo& info);
  Napi::Value rename_snapshot(const Napi::CallbackInfo& info);
  Napi::Value remove(const Napi::CallbackInfo& info);
  Napi::Value resize(const Napi::CallbackInfo& info);
  Napi::Value freeze_for_clone(const Napi::CallbackInfo& info);
  Napi::Value set_base(const Napi::CallbackInfo& info);
  Napi::Value rebase(const Napi::CallbackInfo& info);
  Napi::Value commit_into(const Napi::CallbackInfo& info);
  Napi::Value compact(const Napi::CallbackInfo& info);
  Napi::Value add_checksums(const Napi::CallbackInfo& info);
  Napi::Value remove_checksums(const Napi::CallbackInfo& info);
  Napi::Value scrub(const Napi::CallbackInfo& info);
  Napi::Value set_source(const Napi::CallbackInfo& info);
  Napi::Value source(const Napi::CallbackInfo& info);
  Napi::Value mark_remote(const Napi::CallbackInfo& info);
  Napi::Value fill(const Napi::CallbackInfo& info);
  Napi::Value give_back(const Napi::CallbackInfo& info);
  Napi::Value take_uses(const Napi::CallbackInfo& info);
  Napi::Value remote_bytes(const Napi::CallbackInfo& info);
  Napi::Value remote_blocks(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // Runs `work(image)` on the lane, with a lease. `buffer`, if given, lives until then.
  template <typename T>
  Napi::Value run(Napi::Env env, Lane lane, std::function<Result<T>(Image&)> work,
                  Napi::Object buffer = {});

  // The same for work that may take long. The arguments at `at` and after it are `cancellation`,
  // and `on_progress` or null.
  template <typename T>
  Napi::Value run_long(const Napi::CallbackInfo& info, size_t at,
                       std::function<Result<T>(Image&, const Progress&)> work);

  const std::shared_ptr<WorkQueue> queue_;
  std::shared_ptr<SharedImage> image_;
};

}  // namespace pcow::addon
