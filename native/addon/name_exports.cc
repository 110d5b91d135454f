#include "addon/name_exports.h"

#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/promise_task.h"
#include "engine/disk/file.h"
#include "engine/disk/persistent.h"
#include "engine/format/superblock.h"
#include "engine/image/names.h"

namespace pcow::addon {

template <>
struct ToJs<Draft> {
  static Napi::Value convert(Napi::Env env, const Draft& draft) {
    auto object = Napi::Object::New(env);
    object.Set("path", draft.path);
    object.Set("lock", draft.descriptor);
    return object;
  }
};

template <>
struct ToJs<Superblock> {
  static Napi::Value convert(Napi::Env env, const Superblock& superblock) {
    auto object = Napi::Object::New(env);
    object.Set("uuid", format_uuid(superblock.uuid));
    object.Set("base", env.Null());
    if (superblock.base) {
      auto base = Napi::Object::New(env);
      base.Set("path", superblock.base->path);
      base.Set("uuid", format_uuid(superblock.base->uuid));
      base.Set("layer", static_cast<double>(superblock.base->layer));
      object.Set("base", base);
    }
    return object;
  }
};

namespace {

// These functions are called on the JavaScript thread, and do their work on another one.

template <typename T>
Napi::Value start_work(Napi::Env env, typename PromiseTask<T>::Work work) {
  return start(*Environment::of(env).queue, Lane::kStructure,
               std::make_unique<PromiseTask<T>>(env, std::move(work)));
}

// `draft`, `name`, `replace`.
Napi::Value give(const Napi::CallbackInfo& info) {
  return start_work<void>(
      info.Env(), [draft = text_of(info[0]), name = text_of(info[1]), replace = flag_of(info[2])] {
        return give_name(draft, name, replace);
      });
}

// `name`, `second`.
Napi::Value add(const Napi::CallbackInfo& info) {
  return start_work<void>(info.Env(), [name = text_of(info[0]), second = text_of(info[1])] {
    return add_name(name, second);
  });
}

// `name`.
Napi::Value remove(const Napi::CallbackInfo& info) {
  return start_work<void>(info.Env(), [name = text_of(info[0])] { return remove_name(name); });
}

// `path`, `byte`, `exclusive`. Returns a descriptor for unlockFile(); -1 if another process holds
// the lock.
Napi::Value lock(const Napi::CallbackInfo& info) {
  const auto byte = static_cast<LockByte>(info[1].ToNumber().Int32Value());
  return start_work<int>(info.Env(), [path = text_of(info[0]), byte, exclusive = flag_of(info[2])] {
    return lock_file(path, byte, exclusive);
  });
}

// The descriptor that lockFile() or makeDraft() returned.
Napi::Value unlock(const Napi::CallbackInfo& info) {
  ::close(info[0].ToNumber().Int32Value());
  return info.Env().Undefined();
}

// `name`.
Napi::Value draft(const Napi::CallbackInfo& info) {
  return start_work<Draft>(info.Env(), [name = text_of(info[0])] { return make_draft(name); });
}

// `path`.
Napi::Value remove_left(const Napi::CallbackInfo& info) {
  return start_work<bool>(info.Env(),
                          [path = text_of(info[0])] { return remove_left_draft(path); });
}

// `directory`.
Napi::Value check_directory(const Napi::CallbackInfo& info) {
  return start_work<void>(
      info.Env(), [directory = text_of(info[0])] { return pcow::check_directory(directory); });
}

// `path`: of a regular file. Whether a writer of it will store into persistent memory.
Napi::Value is_persistent(const Napi::CallbackInfo& info) {
  return start_work<bool>(info.Env(), [path = text_of(info[0])]() -> Result<bool> {
    auto file = File::open(path, false, nullptr);
    if (!file) return file.error();
    return is_in_persistent_memory((*file)->descriptor());
  });
}

// `path`. Reads the superblock only: the layers may be damaged, and the bases may be missing.
Napi::Value identify(const Napi::CallbackInfo& info) {
  return start_work<Superblock>(info.Env(), [path = text_of(info[0])]() -> Result<Superblock> {
    auto file = File::open(path, false, nullptr);
    if (!file) return file.error();
    return read_superblock(**file);
  });
}

}  // namespace

void export_names(Napi::Env env, Napi::Object exports) {
  exports.Set("giveName", Napi::Function::New<give>(env, "giveName"));
  exports.Set("addName", Napi::Function::New<add>(env, "addName"));
  exports.Set("removeName", Napi::Function::New<remove>(env, "removeName"));
  exports.Set("lockFile", Napi::Function::New<lock>(env, "lockFile"));
  exports.Set("unlockFile", Napi::Function::New<unlock>(env, "unlockFile"));
  exports.Set("makeDraft", Napi::Function::New<draft>(env, "makeDraft"));
  exports.Set("removeLeftDraft", Napi::Function::New<remove_left>(env, "removeLeftDraft"));
  exports.Set("checkDirectory", Napi::Function::New<check_directory>(env, "checkDirectory"));
  exports.Set("isPersistent", Napi::Function::New<is_persistent>(env, "isPersistent"));
  exports.Set("identify", Napi::Function::New<identify>(env, "identify"));
}

}  // namespace pcow::addon
