// The data that the addon keeps for each Node environment (the main thread, or a worker thread of
// Node).
#pragma once

#include <napi.h>

#include <memory>

#include "addon/work_queue.h"

namespace pcow::addon {

// Node deletes it when the environment ends, after the queue's threads have ended.
struct Environment {
  std::shared_ptr<WorkQueue> queue;
  Napi::FunctionReference image_constructor;

  // JavaScript thread.
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }
};

}  // namespace pcow::addon
