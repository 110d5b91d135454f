#include "addon/image_wrap.h"

#include <cstdlib>
#include <utility>

#include "addon/arguments.h"
#include "addon/background.h"
#include "addon/environment.h"
#include "addon/info_to_js.h"
#include "addon/promise_task.h"
#include "engine/format/bytes.h"

namespace pcow::addon {

template <>
struct ToJs<ScrubReport> {
  static Napi::Value convert(Napi::Env env, ScrubReport& report) {
    return scrub_to_js(env, report);
  }
};

template <>
struct ToJs<ExtentBatch> {
  static Napi::Value convert(Napi::Env env, ExtentBatch& batch) {
    return extents_to_js(env, batch);
  }
};

using SourceContent = std::optional<std::vector<uint8_t>>;

template <>
struct ToJs<SourceContent> {
  static Napi::Value convert(Napi::Env env, SourceContent& content) {
    if (!content) return env.Null();
    return Napi::Buffer<uint8_t>::Copy(env, content->data(), content->size());
  }
};

template <>
struct ToJs<std::vector<bool>> {
  static Napi::Value convert(Napi::Env env, std::vector<bool>& flags) {
    auto array = Napi::Uint8Array::New(env, flags.size());
    std::copy(flags.begin(), flags.end(), array.Data());
    return array;
  }
};

// Blocks and masks in turn.
template <>
struct ToJs<RemoteBatch> {
  static Napi::Value convert(Napi::Env env, RemoteBatch& batch) {
    auto numbers = Napi::Uint32Array::New(env, batch.blocks.size() * 2);
    uint32_t* at = numbers.Data();
    for (const RemoteEntry& entry : batch.blocks) {
      *at++ = entry.block;
      *at++ = entry.mask;
    }
    auto object = Napi::Object::New(env);
    object.Set("blocks", numbers);
    object.Set("next", batch.next ? number(env, *batch.next) : env.Null());
    return object;
  }
};

namespace {

// How JavaScript names a layer: a snapshot's name, the id of a layer, or "" for the layer that is
// active when it is looked up.
struct LayerChoice {
  std::string snapshot;
  uint64_t layer = 0;  // 0: by name

  static LayerChoice of(const Napi::Value& value) {
    if (value.IsNumber()) return {"", bytes_of(value)};
    return {text_of(value), 0};
  }
  Result<std::shared_ptr<View>> view(const Image& image) const {
    if (layer) return image.view_of_layer(layer);
    if (snapshot.empty()) return std::shared_ptr<View>();
    return image.view(snapshot);
  }
};

}  // namespace

Napi::Function ImageWrap::define(Napi::Env env) {
  return DefineClass(env, "NativeImage",
                     {
                         InstanceMethod<&ImageWrap::info>("info"),
                         InstanceMethod<&ImageWrap::size>("size"),
                         InstanceMethod<&ImageWrap::snapshots>("snapshots"),
                         InstanceMethod<&ImageWrap::snapshot_info>("snapshotInfo"),
                         InstanceMethod<&ImageWrap::snapshot_names>("snapshotNames"),
                         InstanceMethod<&ImageWrap::chain>("chain"),
                         InstanceMethod<&ImageWrap::layers>("layers"),
                         InstanceMethod<&ImageWrap::layer_of>("layerOf"),
                         InstanceMethod<&ImageWrap::read>("read"),
                         InstanceMethod<&ImageWrap::map>("map"),
                         InstanceMethod<&ImageWrap::changes>("changes"),
                         InstanceMethod<&ImageWrap::changes_to_base>("changesToBase"),
                         InstanceMethod<&ImageWrap::write>("write"),
                         InstanceMethod<&ImageWrap::discard>("discard"),
                         InstanceMethod<&ImageWrap::sync>("sync"),
                         InstanceMethod<&ImageWrap::snapshot>("snapshot"),
                         InstanceMethod<&ImageWrap::rollback>("rollback"),
                         InstanceMethod<&ImageWrap::rename_snapshot>("renameSnapshot"),
                         InstanceMethod<&ImageWrap::remove>("remove"),
                         InstanceMethod<&ImageWrap::resize>("resize"),
                         InstanceMethod<&ImageWrap::freeze_for_clone>("freezeForClone"),
                         InstanceMethod<&ImageWrap::set_base>("setBase"),
                         InstanceMethod<&ImageWrap::rebase>("rebase"),
                         InstanceMethod<&ImageWrap::commit_into>("commitInto"),
                         InstanceMethod<&ImageWrap::compact>("compact"),
                         InstanceMethod<&ImageWrap::add_checksums>("addChecksums"),
                         InstanceMethod<&ImageWrap::remove_checksums>("removeChecksums"),
                         InstanceMethod<&ImageWrap::scrub>("scrub"),
                         InstanceMethod<&ImageWrap::set_source>("setSource"),
                         InstanceMethod<&ImageWrap::source>("source"),
                         InstanceMethod<&ImageWrap::mark_remote>("markRemote"),
                         InstanceMethod<&ImageWrap::fill>("fill"),
                         InstanceMethod<&ImageWrap::give_back>("giveBack"),
                         InstanceMethod<&ImageWrap::take_uses>("takeUses"),
                         InstanceMethod<&ImageWrap::remote_bytes>("remoteBytes"),
                         InstanceMethod<&ImageWrap::remote_blocks>("remoteBlocks"),
                         InstanceMethod<&ImageWrap::close>("close"),
                     });
}

Napi::Value ImageWrap::wrap(Napi::Env env, std::shared_ptr<SharedImage> image) {
  return Environment::of(env).image_constructor.New(
      {Napi::External<std::shared_ptr<SharedImage>>::New(env, &image)});
}

std::shared_ptr<SharedImage> ImageWrap::unwrap_image(const Napi::Value& value) {
  return Unwrap(value.As<Napi::Object>())->image_;
}

ImageWrap::ImageWrap(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<ImageWrap>(info),
      queue_(Environment::of(info.Env()).queue),
      image_(*info[0].As<Napi::External<std::shared_ptr<SharedImage>>>().Data()) {}

Napi::Value ImageWrap::info(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  return info_to_js(info.Env(), (*image)->info());
}

Napi::Value ImageWrap::size(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  return Napi::Number::New(info.Env(), static_cast<double>((*image)->size()));
}

// `with_data`.
Napi::Value ImageWrap::snapshots(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto snapshots = (*image)->snapshots(flag_of(info[0]));
  if (!snapshots) return throw_in_js(info.Env(), snapshots.error());
  auto list = Napi::Array::New(info.Env(), snapshots->size());
  for (uint32_t i = 0; i < snapshots->size(); ++i)
    list.Set(i, snapshot_to_js(info.Env(), (*snapshots)[i]));
  return list;
}

// `name`.
Napi::Value ImageWrap::snapshot_info(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto snapshot = (*image)->snapshot_info(text_of(info[0]));
  if (!snapshot) return throw_in_js(info.Env(), snapshot.error());
  return snapshot_to_js(info.Env(), *snapshot);
}

Napi::Value ImageWrap::snapshot_names(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto names = (*image)->snapshot_names();
  if (!names) return throw_in_js(info.Env(), names.error());
  auto list = Napi::Array::New(info.Env(), names->size());
  for (uint32_t i = 0; i < names->size(); ++i) list.Set(i, (*names)[i]);
  return list;
}

Napi::Value ImageWrap::layers(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto layers = (*image)->layers();
  if (!layers) return throw_in_js(info.Env(), layers.error());
  auto list = Napi::Array::New(info.Env(), layers->size());
  for (uint32_t i = 0; i < layers->size(); ++i) list.Set(i, layer_to_js(info.Env(), (*layers)[i]));
  return list;
}

// `layer`.
Napi::Value ImageWrap::chain(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto view = LayerChoice::of(info[0]).view(**image);
  if (!view) return throw_in_js(info.Env(), view.error());
  auto chain = (*image)->chain(view->get());
  if (!chain) return throw_in_js(info.Env(), chain.error());
  return chain_to_js(info.Env(), *chain, chain->size());
}

// `snapshot` or "".
Napi::Value ImageWrap::layer_of(const Napi::CallbackInfo& info) {
  auto image = image_->lease();
  if (!image) return throw_in_js(info.Env(), image.error());
  auto id = (*image)->layer_id(text_of(info[0]));
  if (!id) return throw_in_js(info.Env(), id.error());
  return Napi::Number::New(info.Env(), static_cast<double>(*id));
}

template <typename T>
Napi::Value ImageWrap::run(Napi::Env env, Lane lane, std::function<Result<T>(Image&)> work,
                           Napi::Object buffer) {
  auto lease = image_->lease();
  if (!lease) return rejected(env, lease.error());
  // std::function needs a closure that can be copied, and a lease cannot be.
  auto held = std::make_shared<SharedImage::Lease>(std::move(*lease));
  auto task = std::make_unique<PromiseTask<T>>(
      env, [held = std::move(held), work = std::move(work)] { return work(**held); });
  if (!buffer.IsEmpty()) task->keep(buffer);
  return start(*queue_, lane, std::move(task));
}

template <typename T>
Napi::Value ImageWrap::run_long(const Napi::CallbackInfo& info, size_t at,
                                std::function<Result<T>(Image&, const Progress&)> work) {
  auto lease = image_->lease();
  if (!lease) return rejected(info.Env(), lease.error());
  auto held = std::make_shared<SharedImage::Lease>(std::move(*lease));
  return start(*queue_, Lane::kStructure,
               std::make_unique<LongTask<T>>(
                   info.Env(), *queue_, info[at], info[at + 1],
                   [held = std::move(held), work = std::move(work)](const Progress& progress) {
                     return work(**held, progress);
                   }));
}

// `buffer`, `offset`, `layer`.
Napi::Value ImageWrap::read(const Napi::CallbackInfo& info) {
  auto buffer = info[0].As<Napi::Uint8Array>();
  return run<size_t>(
      info.Env(), Lane::kBytes,
      [data = buffer.Data(), length = buffer.ByteLength(), offset = bytes_of(info[1]),
       layer = LayerChoice::of(info[2])](Image& image) -> Result<size_t> {
        auto view = layer.view(image);
        if (!view) return view.error();
        return image.read(view->get(), offset, data, length);
      },
      buffer);
}

// `offset`, `layer`, the depths: first and end.
Napi::Value ImageWrap::map(const Napi::CallbackInfo& info) {
  return run<ExtentBatch>(info.Env(), Lane::kBytes,
                          [offset = bytes_of(info[0]), layer = LayerChoice::of(info[1]),
                           depths = DepthRange{bytes_of(info[2]), bytes_of(info[3])}](
                              Image& image) -> Result<ExtentBatch> {
                            auto view = layer.view(image);
                            if (!view) return view.error();
                            return image.map(view->get(), offset, depths);
                          });
}

// `offset`, `from` and `to`: layers.
Napi::Value ImageWrap::changes(const Napi::CallbackInfo& info) {
  return run<ExtentBatch>(info.Env(), Lane::kBytes,
                          [offset = bytes_of(info[0]), from = LayerChoice::of(info[1]),
                           to = LayerChoice::of(info[2])](Image& image) -> Result<ExtentBatch> {
                            auto before = from.view(image);
                            if (!before) return before.error();
                            auto after = to.view(image);
                            if (!after) return after.error();
                            return image.changes(before->get(), after->get(), offset);
                          });
}

// `offset`, `to`: a layer.
Napi::Value ImageWrap::changes_to_base(const Napi::CallbackInfo& info) {
  return run<ExtentBatch>(info.Env(), Lane::kBytes,
                          [offset = bytes_of(info[0]),
                           to = LayerChoice::of(info[1])](Image& image) -> Result<ExtentBatch> {
                            auto view = to.view(image);
                            if (!view) return view.error();
                            return image.changes_to_base(view->get(), offset);
                          });
}

// `buffer`, `offset`.
Napi::Value ImageWrap::write(const Napi::CallbackInfo& info) {
  auto buffer = info[0].As<Napi::Uint8Array>();
  return run<void>(
      info.Env(), Lane::kBytes,
      [data = buffer.Data(), length = buffer.ByteLength(),
       offset = bytes_of(info[1])](Image& image) { return image.write(offset, data, length); },
      buffer);
}

// `offset`, `length`.
Napi::Value ImageWrap::discard(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kBytes,
                   [offset = bytes_of(info[0]), length = bytes_of(info[1])](Image& image) {
                     return image.discard(offset, length);
                   });
}

Napi::Value ImageWrap::sync(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kStructure, [](Image& image) { return image.sync(); });
}

// `name`; for a received snapshot its `identity` and `created`, else null and null.
Napi::Value ImageWrap::snapshot(const Napi::CallbackInfo& info) {
  SnapshotOrigin origin;
  if (info[1].IsString()) origin.identity = strtoull(text_of(info[1]).c_str(), nullptr, 16);
  // A double is not precise enough for nanoseconds. checkOrigin() has made sure that the product
  // fits.
  if (info[2].IsNumber()) origin.time_ns = info[2].ToNumber().Int64Value() * 1'000'000;
  return run<void>(info.Env(), Lane::kStructure, [name = text_of(info[0]), origin](Image& image) {
    return image.snapshot(name, origin);
  });
}

// `name`.
Napi::Value ImageWrap::rollback(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kStructure,
                   [name = text_of(info[0])](Image& image) { return image.rollback(name); });
}

// `from`, `to`.
Napi::Value ImageWrap::rename_snapshot(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kStructure,
                   [from = text_of(info[0]), to = text_of(info[1])](Image& image) {
                     return image.rename_snapshot(from, to);
                   });
}

// `name`, `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::remove(const Napi::CallbackInfo& info) {
  return run_long<void>(info, 1, [name = text_of(info[0])](Image& image, const Progress& progress) {
    return image.remove(name, progress);
  });
}

// `size`, `shrink`.
Napi::Value ImageWrap::resize(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kStructure,
                   [size = bytes_of(info[0]), shrink = flag_of(info[1])](Image& image) {
                     return image.resize(size, shrink);
                   });
}

// `name`.
Napi::Value ImageWrap::freeze_for_clone(const Napi::CallbackInfo& info) {
  return run<uint64_t>(info.Env(), Lane::kStructure, [name = text_of(info[0])](Image& image) {
    return image.freeze_for_clone(name);
  });
}

// `base` or null.
Napi::Value ImageWrap::set_base(const Napi::CallbackInfo& info) {
  const bool has_base = !info[0].IsNull();
  const BaseSpec base = has_base ? base_of(info[0].As<Napi::Object>()) : BaseSpec();
  return run<void>(info.Env(), Lane::kStructure,
                   [base, has_base](Image& image) { return image.set_base(base, has_base); });
}

// `base` or null, `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::rebase(const Napi::CallbackInfo& info) {
  const bool has_base = !info[0].IsNull();
  const BaseSpec base = has_base ? base_of(info[0].As<Napi::Object>()) : BaseSpec();
  return run_long<void>(info, 1, [base, has_base](Image& image, const Progress& progress) {
    return image.rebase(base, has_base, progress);
  });
}

// `base`: a NativeImage, `name`, `automatic`, `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::commit_into(const Napi::CallbackInfo& info) {
  auto lease = unwrap_image(info[0])->lease();
  if (!lease) return rejected(info.Env(), lease.error());
  auto base = std::make_shared<SharedImage::Lease>(std::move(*lease));
  return run_long<bool>(info, 3,
                        [base, name = text_of(info[1]), automatic = flag_of(info[2])](
                            Image& image, const Progress& progress) {
                          return image.commit_into(&**base, name, automatic, progress);
                        });
}

// `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::compact(const Napi::CallbackInfo& info) {
  return run_long<void>(
      info, 0, [](Image& image, const Progress& progress) { return image.compact(progress); });
}

// `background`, `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::add_checksums(const Napi::CallbackInfo& info) {
  return run_long<void>(info, 1,
                        [background = flag_of(info[0])](Image& image, const Progress& progress) {
                          if (!background) return image.add_checksums(progress);
                          Result<void> outcome;
                          run_in_background([&] { outcome = image.add_checksums(progress); });
                          return outcome;
                        });
}

Napi::Value ImageWrap::remove_checksums(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kStructure,
                   [](Image& image) { return image.remove_checksums(); });
}

// `cancellation`, `on_progress` or null.
Napi::Value ImageWrap::scrub(const Napi::CallbackInfo& info) {
  return run_long<ScrubReport>(
      info, 0, [](Image& image, const Progress& progress) { return image.scrub(progress); });
}

// `content` or null.
Napi::Value ImageWrap::set_source(const Napi::CallbackInfo& info) {
  SourceContent content;
  if (!info[0].IsNull()) {
    auto bytes = info[0].As<Napi::Uint8Array>();
    content.emplace(bytes.Data(), bytes.Data() + bytes.ByteLength());
  }
  return run<void>(info.Env(), Lane::kStructure, [content = std::move(content)](Image& image) {
    return image.set_source(content);
  });
}

Napi::Value ImageWrap::source(const Napi::CallbackInfo& info) {
  return run<SourceContent>(info.Env(), Lane::kBytes, [](Image& image) { return image.source(); });
}

// 8 bytes for each block.
static std::vector<RemoteEntry> remote_entries(const Napi::Value& value) {
  auto bytes = value.As<Napi::Uint8Array>();
  std::vector<RemoteEntry> entries;
  for (size_t at = 0; at + 8 <= bytes.ByteLength(); at += 8)
    entries.push_back(
        {get_field<uint32_t>(bytes.Data(), at), get_field<uint16_t>(bytes.Data(), at + 4)});
  return entries;
}

// `entries`.
Napi::Value ImageWrap::mark_remote(const Napi::CallbackInfo& info) {
  return run<void>(info.Env(), Lane::kBytes, [entries = remote_entries(info[0])](Image& image) {
    return image.mark_remote(entries);
  });
}

// `layer`, `entries`.
Napi::Value ImageWrap::give_back(const Napi::CallbackInfo& info) {
  // Not behind a long change of the structure: readers wait for the room.
  return run<std::vector<bool>>(info.Env(), Lane::kBytes,
                                [layer = bytes_of(info[0]), entries = remote_entries(info[1])](
                                    Image& image) { return image.give_back(layer, entries); });
}

// `layer`, `block`, `count`.
Napi::Value ImageWrap::take_uses(const Napi::CallbackInfo& info) {
  return run<bool>(
      info.Env(), Lane::kBytes,
      [layer = bytes_of(info[0]), block = bytes_of(info[1]), count = bytes_of(info[2])](
          Image& image) -> Result<bool> { return image.take_uses(layer, block, count); });
}

Napi::Value ImageWrap::remote_bytes(const Napi::CallbackInfo& info) {
  return run<uint64_t>(info.Env(), Lane::kBytes, [](Image& image) { return image.remote_bytes(); });
}

// `layer`, `block`, `buffer`.
Napi::Value ImageWrap::fill(const Napi::CallbackInfo& info) {
  auto buffer = info[2].As<Napi::Uint8Array>();
  return run<uint64_t>(
      info.Env(), Lane::kBytes,
      [layer = bytes_of(info[0]), block = bytes_of(info[1]), data = buffer.Data(),
       length = buffer.ByteLength()](Image& image) {
        return image.fill(layer, block, data, length);
      },
      buffer);
}

// `layer`, `from`.
Napi::Value ImageWrap::remote_blocks(const Napi::CallbackInfo& info) {
  return run<RemoteBatch>(info.Env(), Lane::kBytes,
                          [layer = bytes_of(info[0]), from = bytes_of(info[1])](Image& image) {
                            return image.remote_blocks(layer, from);
                          });
}

Napi::Value ImageWrap::close(const Napi::CallbackInfo& info) {
  auto task = std::make_unique<PromiseTask<void>>(
      info.Env(), [image = image_] { return image->finish_close(); });
  Napi::Promise promise = task->promise();
  // The last lease is returned on a worker or FUSE thread. The task waits there until then.
  auto waiting = std::make_shared<std::unique_ptr<Task>>(std::move(task));
  auto begun = image_->close_when_idle(
      [queue = queue_, waiting] { queue->submit(Lane::kStructure, std::move(*waiting)); });
  if (!begun) return rejected(info.Env(), begun.error());
  queue_->expect();  // before it can settle: it settles on this thread
  return promise;
}

}  // namespace pcow::addon
