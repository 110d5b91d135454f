#include "addon/fuse_exports.h"

#include <cerrno>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/errors.h"
#include "addon/flat_files.h"
#include "addon/fuse_cache.h"
#include "addon/fuse_handles.h"
#include "addon/fuse_nodes.h"
#include "addon/fuse_operations.h"
#include "addon/fuse_questions.h"
#include "addon/image_wrap.h"
#include "addon/open_grants.h"

namespace pcow::addon {

namespace {

// `libfuse`, `directory`: paths.
Napi::Value load(const Napi::CallbackInfo& info) {
  auto prepared = prepare_fuse(text_of(info[0]), text_of(info[1]));
  if (!prepared) return throw_in_js(info.Env(), prepared.error());
  return info.Env().Undefined();
}

Napi::Value count_interceptions(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(fuse_interceptions()));
}

Napi::Value count_requests(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(fuse_requests()));
}

// NativeImage, `snapshot` or "", `writable`.
Result<std::shared_ptr<FuseHandle>> handle_of(const Napi::Value& native, const Napi::Value& name,
                                              bool writable) {
  auto handle = std::make_shared<FuseHandle>();
  handle->image = ImageWrap::unwrap_image(native);
  handle->writable = writable;
  auto image = handle->image->lease();
  if (!image) return image.error();
  if (const std::string snapshot = text_of(name); !snapshot.empty()) {
    auto id = (*image)->layer_id(snapshot);
    if (!id) return id.error();
    auto view = (*image)->view(snapshot);
    if (!view) return view.error();
    handle->layer = *id;
    handle->viewed = image->keep();
    handle->view = *view;
    handle->writable = false;
  }
  return handle;
}

// NativeImage, `snapshot` or "", `writable`, `lent`.
Napi::Value open_handle(const Napi::CallbackInfo& info) {
  auto handle = handle_of(info[0], info[1], flag_of(info[2]));
  if (!handle) return throw_in_js(info.Env(), handle.error());
  (*handle)->lent = flag_of(info[3]);
  return Napi::Number::New(info.Env(),
                           static_cast<double>(FuseHandles::instance().add(std::move(*handle))));
}

// `fh`, NativeImage, `snapshot` or "", `writable`, `lent`, `refusesCached`. Releasing the old
// handle may close its image, so another thread does it.
Napi::Value move_handle(const Napi::CallbackInfo& info) {
  auto handle = handle_of(info[1], info[2], flag_of(info[3]));
  if (!handle) return throw_in_js(info.Env(), handle.error());
  (*handle)->lent = flag_of(info[4]);
  (*handle)->refuses_cached = flag_of(info[5]);
  auto old = FuseHandles::instance().replace(bytes_of(info[0]), std::move(*handle));
  if (old) Environment::of(info.Env()).queue->dispose(std::move(old));
  return info.Env().Undefined();
}

// `fh`. Releasing the handle may close an image that nothing else uses, so another thread does it.
Napi::Value close_handle(const Napi::CallbackInfo& info) {
  auto handle = FuseHandles::instance().remove(bytes_of(info[0]));
  const bool found = handle != nullptr;
  if (found) Environment::of(info.Env()).queue->dispose(std::move(handle));
  return Napi::Boolean::New(info.Env(), found);
}

// `fh`. Returns 0 if it is not known.
Napi::Value opener_of(const Napi::CallbackInfo& info) {
  const auto handle = FuseHandles::instance().find(bytes_of(info[0]));
  return Napi::Number::New(info.Env(), handle ? handle->opener.load() : 0);
}

// `name` in the mount, `device` and `inode` of its image file, its `number` in the mount,
// NativeImage, `lent`.
Napi::Value tell_flat_file(const Napi::CallbackInfo& info) {
  bool lossless;
  FlatFile file;
  file.device = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  file.inode = info[2].As<Napi::BigInt>().Uint64Value(&lossless);
  file.number = info[3].As<Napi::BigInt>().Uint64Value(&lossless);
  file.image = ImageWrap::unwrap_image(info[4]);
  file.lent = flag_of(info[5]);
  FlatFiles::instance().tell(text_of(info[0]), std::move(file));
  return info.Env().Undefined();
}

// `name` in the mount.
Napi::Value forget_flat_file(const Napi::CallbackInfo& info) {
  const std::string name = text_of(info[0]);
  FlatFiles::instance().forget(name);
  FuseCache::instance().forget("/" + name);
  FuseNodes::instance().gone(name);
  return info.Env().Undefined();
}

// `name` in the mount. The next stat(2) of it asks JavaScript again.
Napi::Value flat_file_changed(const Napi::CallbackInfo& info) {
  const std::string name = text_of(info[0]);
  FlatFiles::instance().forget(name);
  FuseNodes::instance().changed(name);
  return info.Env().Undefined();
}

Napi::Value flat_files_changed(const Napi::CallbackInfo& info) {
  FuseNodes::instance().everything_changed();
  return info.Env().Undefined();
}

// `directory` in the mount, with a slash at its end, and an array of the names that are `present`.
Napi::Value forget_files_in(const Napi::CallbackInfo& info) {
  const auto names = info[1].As<Napi::Array>();
  std::unordered_set<std::string> present;
  for (uint32_t i = 0; i < names.Length(); ++i) present.insert(text_of(names.Get(i)));
  FuseCache::instance().forget_in(text_of(info[0]), present);
  return info.Env().Undefined();
}

Napi::Value count_remembered(const Napi::CallbackInfo& info) {
  const size_t count =
      FlatFiles::instance().size() + FuseCache::instance().size() + FuseNodes::instance().size();
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

// `name` in the mount, NativeImage.
Napi::Value grant_opens(const Napi::CallbackInfo& info) {
  OpenGrants::instance().grant(text_of(info[0]), ImageWrap::unwrap_image(info[1]));
  return info.Env().Undefined();
}

// `name` in the mount. Returns an array of objects with `fh` and `writable`.
Napi::Value take_back_opens(const Napi::CallbackInfo& info) {
  auto result = Napi::Array::New(info.Env());
  for (const auto& [fh, writable] : OpenGrants::instance().take_back(text_of(info[0]))) {
    auto open = Napi::Object::New(info.Env());
    open.Set("fh", Napi::Number::New(info.Env(), static_cast<double>(fh)));
    open.Set("writable", Napi::Boolean::New(info.Env(), writable));
    result.Set(result.Length(), open);
  }
  return result;
}

// `callback`: (fh). The callback does not keep the process alive.
Napi::Value on_release(const Napi::CallbackInfo& info) {
  auto tell =
      Napi::ThreadSafeFunction::New(info.Env(), info[0].As<Napi::Function>(), "pcow release", 0, 1);
  tell.Unref(info.Env());
  OpenGrants::instance().on_release([tell](uint64_t fh) {
    tell.NonBlockingCall([fh](Napi::Env env, Napi::Function callback) {
      if (static_cast<napi_env>(env) != nullptr)
        callback.Call({Napi::Number::New(env, static_cast<double>(fh))});
    });
  });
  return info.Env().Undefined();
}

// NativeImage, which may be closed.
Napi::Value traffic_of(const Napi::CallbackInfo& info) {
  const auto image = ImageWrap::unwrap_image(info[0]);
  const Traffic& traffic = image->traffic();
  auto result = Napi::Object::New(info.Env());
  const auto set = [&](const char* name, const Traffic::Counter& counter) {
    result.Set(name, Napi::Number::New(
                         info.Env(), static_cast<double>(counter.load(std::memory_order_relaxed))));
  };
  set("reads", traffic.reads);
  set("readBytes", traffic.read_bytes);
  set("writes", traffic.writes);
  set("writtenBytes", traffic.written_bytes);
  set("syncs", traffic.syncs);
  set("discards", traffic.discards);
  return result;
}

// NativeImage, which may be closed.
Napi::Value count_cached_reads(const Napi::CallbackInfo& info) {
  const auto count =
      ImageWrap::unwrap_image(info[0])->traffic().cached_reads.load(std::memory_order_relaxed);
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

// `env` is null when the environment is shutting down.
void put_question(Napi::Env env, Napi::Function on_question, FuseQuestion* given) {
  const std::unique_ptr<FuseQuestion> question(given);
  if (static_cast<napi_env>(env) == nullptr) {
    FuseQuestions::instance().answer(question->id, -EBUSY);
    return;
  }
  const auto number = [&](uint64_t value) {
    return Napi::Number::New(env, static_cast<double>(value));
  };
  if (question->remote) {
    on_question.Call({number(question->id), Napi::String::New(env, "fetch"),
                      remote_to_js(env, *question->remote)});
    return;
  }
  const char* kind = question->kind == FuseQuestion::Kind::kOpen ? "open" : "write";
  on_question.Call({number(question->id), Napi::String::New(env, kind), number(question->fh),
                    number(question->pid)});
}

// `callback`: (id, kind, fh, pid), or (id, "fetch", block). Waiting for questions does not keep the process alive.
Napi::Value on_question(const Napi::CallbackInfo& info) {
  auto ask = Napi::ThreadSafeFunction::New(info.Env(), info[0].As<Napi::Function>(),
                                           "pcow question", 0, 1);
  ask.Unref(info.Env());
  FuseQuestions::instance().set_ask([ask](const FuseQuestion& question) {
    auto carried = std::make_unique<FuseQuestion>(question);
    if (ask.NonBlockingCall(carried.get(), put_question) != napi_ok) return false;
    carried.release();
    return true;
  });
  return info.Env().Undefined();
}

// `id`, `result`.
Napi::Value answer_question(const Napi::CallbackInfo& info) {
  FuseQuestions::instance().answer(bytes_of(info[0]), info[1].ToNumber().Int32Value());
  return info.Env().Undefined();
}

// `callback`, called once on the JavaScript thread. Waiting for it does not keep the process alive.
Napi::Value on_end(const Napi::CallbackInfo& info) {
  auto end = Napi::ThreadSafeFunction::New(info.Env(), info[0].As<Napi::Function>(),
                                           "pcow mount end", 0, 1);
  end.Unref(info.Env());
  // `end` is not released in the callback: by then the callback may have let the process exit, and
  // Node may have destroyed it.
  set_fuse_end([end] { end.NonBlockingCall(); });
  return info.Env().Undefined();
}

}  // namespace

void export_fuse(Napi::Env env, Napi::Object exports) {
  exports.Set("fuseLoad", Napi::Function::New<load>(env, "fuseLoad"));
  exports.Set("fuseInterceptions",
              Napi::Function::New<count_interceptions>(env, "fuseInterceptions"));
  exports.Set("fuseRequests", Napi::Function::New<count_requests>(env, "fuseRequests"));
  exports.Set("fuseTellFlatFile", Napi::Function::New<tell_flat_file>(env, "fuseTellFlatFile"));
  exports.Set("fuseFlatFileChanged",
              Napi::Function::New<flat_file_changed>(env, "fuseFlatFileChanged"));
  exports.Set("fuseFlatFilesChanged",
              Napi::Function::New<flat_files_changed>(env, "fuseFlatFilesChanged"));
  exports.Set("fuseForgetFlatFile",
              Napi::Function::New<forget_flat_file>(env, "fuseForgetFlatFile"));
  exports.Set("fuseForgetFilesIn", Napi::Function::New<forget_files_in>(env, "fuseForgetFilesIn"));
  exports.Set("fuseRemembered", Napi::Function::New<count_remembered>(env, "fuseRemembered"));
  exports.Set("fuseTraffic", Napi::Function::New<traffic_of>(env, "fuseTraffic"));
  exports.Set("fuseCachedReads", Napi::Function::New<count_cached_reads>(env, "fuseCachedReads"));
  exports.Set("fuseOnQuestion", Napi::Function::New<on_question>(env, "fuseOnQuestion"));
  exports.Set("fuseAnswer", Napi::Function::New<answer_question>(env, "fuseAnswer"));
  exports.Set("fuseOnEnd", Napi::Function::New<on_end>(env, "fuseOnEnd"));
  exports.Set("fuseOpenHandle", Napi::Function::New<open_handle>(env, "fuseOpenHandle"));
  exports.Set("fuseMoveHandle", Napi::Function::New<move_handle>(env, "fuseMoveHandle"));
  exports.Set("fuseCloseHandle", Napi::Function::New<close_handle>(env, "fuseCloseHandle"));
  exports.Set("fuseGrantOpens", Napi::Function::New<grant_opens>(env, "fuseGrantOpens"));
  exports.Set("fuseTakeBackOpens", Napi::Function::New<take_back_opens>(env, "fuseTakeBackOpens"));
  exports.Set("fuseOnRelease", Napi::Function::New<on_release>(env, "fuseOnRelease"));
  exports.Set("fuseOpener", Napi::Function::New<opener_of>(env, "fuseOpener"));
}

}  // namespace pcow::addon
