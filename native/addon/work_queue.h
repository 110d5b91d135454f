// Work outside the JavaScript thread.
//
// The queue has its own threads instead of libuv's pool. That pool has four threads, shared with
// everything that Node does with files, and four slow syncs would block it. There are two lanes, so
// that a read never waits for a sync or a merge of another image: a few threads for bytes, and one
// thread for each change of structure or sync in progress, up to a limit.
//
// There is one queue for each Node environment (the main thread, or a worker thread). It ends with
// the environment: tasks that have begun are cancelled if possible, and waited for; the others are
// dropped.
#pragma once

#include <napi.h>
#include <pthread.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace pcow::addon {

class Task {
 public:
  // JavaScript thread; any thread for a task that holds no JavaScript objects and was submitted too
  // late.
  virtual ~Task() = default;
  // Worker thread. Must release everything whose release may take time.
  virtual void run() = 0;
  // Whether settle() must be called, and expect() was called.
  virtual bool settles() const { return true; }
  // JavaScript thread, after run().
  virtual void settle(Napi::Env) {}
  // JavaScript thread, after WorkQueue::ask_report(), before settle().
  virtual void report(Napi::Env) {}
  // JavaScript thread, while run() may be in progress: makes run() return soon.
  virtual void cancel() {}
};

enum class Lane { kBytes, kStructure };

class WorkQueue {
 public:
  // JavaScript thread.
  static std::shared_ptr<WorkQueue> create(Napi::Env env);

  // JavaScript thread. Announces a task. Until the task has settled, the process does not end by
  // itself.
  void expect();
  // Any thread, once for each expect(). Runs the task in the calling thread if no thread can be
  // started, or if the queue has ended.
  void submit(Lane lane, std::unique_ptr<Task> task);
  // Worker thread, from inside run(): requests a call of the task's report().
  void ask_report(Task* task);
  // Any thread. Releases an object whose destruction may take long (an image that is
  // garbage-collected). Nothing waits for it. If the queue has ended, the caller does it at once.
  void dispose(std::shared_ptr<void> thing);

 private:
  struct LaneState {
    explicit LaneState(size_t limit) : thread_limit(limit) {}
    const size_t thread_limit;
    std::deque<std::unique_ptr<Task>> waiting;
    std::vector<Task*> running;
    std::vector<pthread_t> threads;
    size_t idle = 0;
    std::condition_variable wake;
  };
  struct Ready {
    Task* report = nullptr;
    std::unique_ptr<Task> settle;
  };
  struct Start {
    WorkQueue* queue;
    LaneState* lane;
  };
  static void drain(Napi::Env env, Napi::Function, WorkQueue* queue, void*);
  using Wakeup = Napi::TypedThreadSafeFunction<WorkQueue, void, &WorkQueue::drain>;

  WorkQueue() = default;
  static void* thread_main(void* start);
  bool add_thread(LaneState& lane);
  void work(LaneState& lane);
  void push_ready(Ready ready);
  void stop();

  // Guards everything below it. Held for short times, never during a task's methods.
  std::mutex lock_;
  bool stopped_ = false;
  LaneState bytes_{4};
  LaneState structure_{64};
  std::deque<Ready> ready_;

  // Called only with the lock held and stopped_ false: the environment closes it after stop().
  Wakeup wakeup_;
  // JavaScript thread only: the environment, and the tasks expected and not yet settled.
  napi_env env_ = nullptr;
  size_t expected_ = 0;
};

}  // namespace pcow::addon
