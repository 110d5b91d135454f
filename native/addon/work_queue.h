// Work off the JavaScript thread.
//
// Threads of its own rather than libuv's pool: that has four, shared with everything that Node does with files, and four
// slow syncs would stop it. There are two lanes, so that a read never waits for a sync or a merge of some other image: a
// few threads for bytes, and one for each change of structure or sync under way, up to a limit.
//
// One queue for each Node environment (the main thread, or a worker thread). It ends with the environment: tasks that
// have begun are cancelled where they can be and waited for; the others are dropped.
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
  // JavaScript thread; but any thread for a task that holds nothing of JavaScript and was submitted too late.
  virtual ~Task() = default;
  // Worker thread. Lets go of everything that may take time to let go of.
  virtual void run() = 0;
  // Whether settle() is to be called, and expect() was.
  virtual bool settles() const { return true; }
  // JavaScript thread, after run().
  virtual void settle(Napi::Env) {}
  // JavaScript thread, after WorkQueue::ask_report(), before settle().
  virtual void report(Napi::Env) {}
  // JavaScript thread, while run() may be under way: come to an end soon.
  virtual void cancel() {}
};

enum class Lane { kBytes, kStructure };

class WorkQueue {
 public:
  // JavaScript thread.
  static std::shared_ptr<WorkQueue> create(Napi::Env env);

  // JavaScript thread: a task will be submitted. Until it has settled the process does not end by itself.
  void expect();
  // Any thread, once for each expect(). Runs the task in place where no thread can be started, or the queue has ended.
  void submit(Lane lane, std::unique_ptr<Task> task);
  // Worker thread, from inside run(): have the task's report() called.
  void ask_report(Task* task);
  // Any thread: lets go of something whose destruction may take long (an image that is collected as garbage). Nothing
  // waits for it, and where the queue has ended it is done at once, by the caller.
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

  // Guards everything below it. Held for moments, never around a task's methods.
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
