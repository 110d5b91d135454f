#include "addon/check_exports.h"

#include <memory>
#include <string>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/info_to_js.h"
#include "addon/long_task.h"
#include "addon/promise_task.h"
#include "engine/check/check.h"
#include "engine/image/recovery.h"

namespace pcow::addon {

template <>
struct ToJs<CheckReport> {
  static Napi::Value convert(Napi::Env env, CheckReport& report) {
    auto object = Napi::Object::New(env);
    const bool known = !report.uuid.empty();
    object.Set("path", report.path);
    object.Set("uuid", known ? Napi::String::New(env, report.uuid) : env.Null());
    object.Set("generation", known ? number(env, report.generation) : env.Null());
    object.Set("blockSize", known ? number(env, report.block_size) : env.Null());
    object.Set("size", report.size ? number(env, report.size) : env.Null());
    object.Set("snapshots", report.size ? number(env, report.snapshots) : env.Null());
    object.Set("data", report.size ? number(env, report.data) : env.Null());
    object.Set("remote", number(env, report.remote));
    object.Set("inUse", report.in_use);
    object.Set("clean", report.clean);
    object.Set("hostCrashed", report.crashed);
    object.Set("dropped", number(env, report.dropped));
    object.Set("damages", number(env, report.damages));
    object.Set("leaks", number(env, report.leaks));
    object.Set("repaired", number(env, report.repaired));
    object.Set("lost",
               report.lost_path.empty() ? env.Null() : Napi::String::New(env, report.lost_path));
    object.Set("losses", losses_to_js(env, report.losses));
    object.Set("unplaced", number(env, report.unplaced));
    object.Set("olderDirectory", report.older_directory);
    object.Set("findings", findings_to_js(env, report.findings));
    return object;
  }
};

template <>
struct ToJs<Recovery> {
  static Napi::Value convert(Napi::Env env, Recovery& recovery) {
    return Napi::String::New(env, recovery == Recovery::kNothing     ? "nothing"
                                  : recovery == Recovery::kRecovered ? "recovered"
                                                                     : "in use");
  }
};

namespace {

template <typename T>
Napi::Value start_long(const Napi::CallbackInfo& info, size_t at,
                       typename LongTask<T>::LongWork work) {
  WorkQueue& queue = *Environment::of(info.Env()).queue;
  return start(
      queue, Lane::kStructure,
      std::make_unique<LongTask<T>>(info.Env(), queue, info[at], info[at + 1], std::move(work)));
}

// `path`, `repair`, `cancellation`, `on_progress` or null.
Napi::Value check(const Napi::CallbackInfo& info) {
  CheckOptions options;
  options.repair = flag_of(info[1]);
  return start_long<CheckReport>(info, 2,
                                 [path = text_of(info[0]), options](const Progress& progress) {
                                   return check_image(path, options, progress);
                                 });
}

// `path`.
Napi::Value recover(const Napi::CallbackInfo& info) {
  return start(*Environment::of(info.Env()).queue, Lane::kStructure,
               std::make_unique<PromiseTask<Recovery>>(
                   info.Env(), [path = text_of(info[0])] { return recover_image(path); }));
}

}  // namespace

void export_check(Napi::Env env, Napi::Object exports) {
  exports.Set("check", Napi::Function::New<check>(env, "check"));
  exports.Set("recover", Napi::Function::New<recover>(env, "recover"));
}

}  // namespace pcow::addon
