// The addon: what src/engine/native.ts declares as NativeAddon.
#include <napi.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/attach_exports.h"
#include "addon/cancellation.h"
#include "addon/check_exports.h"
#include "addon/daemon_exports.h"
#include "addon/directory_lock.h"
#include "addon/environment.h"
#include "addon/fuse_exports.h"
#include "addon/image_wrap.h"
#include "addon/name_exports.h"
#include "addon/promise_task.h"
#include "addon/run_exports.h"
#include "addon/shared_image.h"
#include "addon/zstd_exports.h"
#include "engine/format/crc32c.h"
#include "engine/image/image.h"

namespace pcow::addon {

template <>
struct ToJs<std::shared_ptr<SharedImage>> {
  static Napi::Value convert(Napi::Env env, std::shared_ptr<SharedImage>& image) {
    return ImageWrap::wrap(env, image);
  }
};

namespace {

// The functions below are called on the JavaScript thread.

template <typename T>
Napi::Value start_structure(Napi::Env env, typename PromiseTask<T>::Work work) {
  return start(*Environment::of(env).queue, Lane::kStructure,
               std::make_unique<PromiseTask<T>>(env, std::move(work)));
}

// `path`, NativeCreateOptions.
Napi::Value create(const Napi::CallbackInfo& info) {
  auto given = info[1].As<Napi::Object>();
  CreateOptions options;
  options.size = bytes_of(given.Get("size"));
  options.block_size = static_cast<uint32_t>(bytes_of(given.Get("blockSize")));
  options.into = flag_of(given.Get("into"));
  const Napi::Value base = given.Get("base");
  options.has_base = !base.IsNull();
  if (options.has_base) options.base = base_of(base.As<Napi::Object>());
  return start_structure<void>(
      info.Env(), [path = text_of(info[0]), options] { return create_image(path, options); });
}

// `path`, `write`, `base_root` or "", `without_bases`: if true, the image cannot be read.
Napi::Value open(const Napi::CallbackInfo& info) {
  OpenOptions options;
  options.write = flag_of(info[1]);
  options.base_root = text_of(info[2]);
  options.without_bases = flag_of(info[3]);
  return start_structure<std::shared_ptr<SharedImage>>(
      info.Env(), [path = text_of(info[0]), options]() -> Result<std::shared_ptr<SharedImage>> {
        auto image = Image::open(path, options);
        if (!image) return image.error();
        return std::make_shared<SharedImage>(std::move(*image), options.write);
      });
}

// `path`, `base` or null.
Napi::Value set_base_blindly(const Napi::CallbackInfo& info) {
  const bool has_base = !info[1].IsNull();
  const BaseSpec base = has_base ? base_of(info[1].As<Napi::Object>()) : BaseSpec();
  return start_structure<void>(info.Env(),
                               [path = text_of(info[0]), base, has_base]() -> Result<void> {
                                 OpenOptions options;
                                 options.write = true;
                                 options.without_bases = true;
                                 auto image = Image::open(path, options);
                                 if (!image) return image.error();
                                 PCOW_TRY((*image)->set_base(base, has_base));
                                 return (*image)->close();
                               });
}

// An array of NativeImage, `name`.
Napi::Value snapshot_together(const Napi::CallbackInfo& info) {
  auto list = info[0].As<Napi::Array>();
  auto leases = std::make_shared<std::vector<SharedImage::Lease>>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    auto lease = ImageWrap::unwrap_image(list.Get(i))->lease();
    if (!lease) return rejected(info.Env(), lease.error());
    leases->push_back(std::move(*lease));
  }
  return start_structure<void>(info.Env(), [leases, name = text_of(info[1])] {
    std::vector<Image*> images;
    for (SharedImage::Lease& lease : *leases) images.push_back(&*lease);
    return Image::snapshot_together(images, name);
  });
}

// `bytes`, `seed`.
Napi::Value crc32c_of(const Napi::CallbackInfo& info) {
  auto bytes = info[0].As<Napi::Uint8Array>();
  return Napi::Number::New(
      info.Env(), crc32c(bytes.Data(), bytes.ByteLength(), info[1].ToNumber().Uint32Value()));
}

// `descriptor`, `from`, `end`. On every local filesystem this asks the kernel only, not the disk.
Napi::Value next_data(const Napi::CallbackInfo& info) {
  const int descriptor = info[0].ToNumber().Int32Value();
  const auto end = static_cast<off_t>(bytes_of(info[2]));
  const auto seek = [&](off_t from, int whence) {
    const off_t found = lseek(descriptor, from, whence);
    return found < 0 && errno == ENXIO ? end : found;
  };
  auto from = static_cast<off_t>(bytes_of(info[1]));
  off_t data = seek(from, SEEK_DATA);
  off_t hole = data < 0 || data >= end ? end : seek(data, SEEK_HOLE);
  // If the filesystem does not support holes, everything counts as data.
  if (data < 0 || hole < 0) std::tie(data, hole) = std::pair(from, end);
  auto range = Napi::Array::New(info.Env(), 2);
  range.Set(uint32_t{0}, static_cast<double>(std::min(data, end)));
  range.Set(uint32_t{1}, static_cast<double>(std::min(hole, end)));
  return range;
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  auto environment = std::make_unique<Environment>();
  environment->queue = WorkQueue::create(env);
  environment->image_constructor = Napi::Persistent(ImageWrap::define(env));
  env.SetInstanceData(environment.release());

  exports.Set("create", Napi::Function::New<create>(env, "create"));
  exports.Set("open", Napi::Function::New<open>(env, "open"));
  exports.Set("setBaseBlindly", Napi::Function::New<set_base_blindly>(env, "setBaseBlindly"));
  exports.Set("snapshotTogether", Napi::Function::New<snapshot_together>(env, "snapshotTogether"));
  exports.Set("Cancellation", Cancellation::define(env));
  exports.Set("crc32c", Napi::Function::New<crc32c_of>(env, "crc32c"));
  exports.Set("nextData", Napi::Function::New<next_data>(env, "nextData"));
  export_fuse(env, exports);
  export_directory_lock(env, exports);
  export_names(env, exports);
  export_run(env, exports);
  export_check(env, exports);
  export_daemon(env, exports);
  export_zstd(env, exports);
  exports.Set("AttachServer", AttachServerWrap::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(pcow, initialise)

}  // namespace pcow::addon
