#include "addon/work_queue.h"

#include <algorithm>
#include <utility>

#include "engine/disk/bus_guard.h"

namespace pcow::addon {

namespace {

// It does not settle: it is submitted without expect(), and does not keep the process from ending.
class DisposeTask : public Task {
 public:
  explicit DisposeTask(std::shared_ptr<void> thing) : thing_(std::move(thing)) {}
  void run() override { thing_.reset(); }
  bool settles() const override { return false; }

 private:
  std::shared_ptr<void> thing_;
};

}  // namespace

std::shared_ptr<WorkQueue> WorkQueue::create(Napi::Env env) {
  std::shared_ptr<WorkQueue> queue(new WorkQueue());
  queue->env_ = env;
  queue->wakeup_ = Wakeup::New(env, "pcow", 0, 1, queue.get());
  queue->wakeup_.Unref(env);
  // Clean-up hooks run in reverse order, so this hook runs before the one that closes wakeup_. By
  // then the threads have ended, and nothing calls wakeup_ any more.
  env.AddCleanupHook([](WorkQueue* stopping) { stopping->stop(); }, queue.get());
  return queue;
}

void WorkQueue::expect() {
  if (expected_++ == 0) wakeup_.Ref(env_);
}

void WorkQueue::submit(Lane which, std::unique_ptr<Task> task) {
  LaneState& lane = which == Lane::kBytes ? bytes_ : structure_;
  {
    std::lock_guard guard(lock_);
    if (!stopped_) {
      lane.waiting.push_back(std::move(task));
      if (lane.waiting.size() <= lane.idle) {
        lane.wake.notify_one();
        return;
      }
      if (lane.threads.size() == lane.thread_limit || add_thread(lane) || !lane.threads.empty())
        return;
      // No thread can be started: the caller runs the task itself.
      task = std::move(lane.waiting.back());
      lane.waiting.pop_back();
    }
  }
  task->run();
  std::lock_guard guard(lock_);
  if (!stopped_ && task->settles()) push_ready({nullptr, std::move(task)});
}

void WorkQueue::ask_report(Task* task) {
  std::lock_guard guard(lock_);
  if (!stopped_) push_ready({task, nullptr});
}

void WorkQueue::dispose(std::shared_ptr<void> thing) {
  submit(Lane::kStructure, std::make_unique<DisposeTask>(std::move(thing)));
}

// Lock held. With signals blocked: Node handles signals, on its own threads.
bool WorkQueue::add_thread(LaneState& lane) {
  const SignalsHeld held;
  auto start = std::make_unique<Start>(Start{this, &lane});
  pthread_t thread;
  const bool created = pthread_create(&thread, nullptr, thread_main, start.get()) == 0;
  if (!created) return false;
  start.release();
  lane.threads.push_back(thread);
  return true;
}

void* WorkQueue::thread_main(void* argument) {
  std::unique_ptr<Start> start(static_cast<Start*>(argument));
  start->queue->work(*start->lane);
  return nullptr;
}

void WorkQueue::work(LaneState& lane) {
  std::unique_lock guard(lock_);
  for (;;) {
    ++lane.idle;
    lane.wake.wait(guard, [&] { return stopped_ || !lane.waiting.empty(); });
    --lane.idle;
    if (stopped_) return;
    std::unique_ptr<Task> task = std::move(lane.waiting.front());
    lane.waiting.pop_front();
    lane.running.push_back(task.get());
    guard.unlock();
    task->run();
    guard.lock();
    std::erase(lane.running, task.get());
    // Also when stopped: the task may hold JavaScript objects, which stop() releases on the
    // JavaScript thread.
    if (task->settles()) push_ready({nullptr, std::move(task)});
  }
}

// Lock held.
void WorkQueue::push_ready(Ready ready) {
  ready_.push_back(std::move(ready));
  if (ready_.size() == 1 && !stopped_) wakeup_.NonBlockingCall();
}

// JavaScript thread. `env` is null when the environment is shutting down. A worker thread of Node
// may be terminated at any moment during this function. Then every call into JavaScript fails, and
// NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS (binding.gyp) keeps node-addon-api from ending the
// process because of that.
void WorkQueue::drain(Napi::Env env, Napi::Function, WorkQueue* queue, void*) {
  if (static_cast<napi_env>(env) == nullptr) return;
  std::deque<Ready> ready;
  {
    std::lock_guard guard(queue->lock_);
    ready.swap(queue->ready_);
  }
  for (Ready& item : ready) {
    Napi::HandleScope scope(env);
    if (item.report) {
      item.report->report(env);
    } else {
      item.settle->settle(env);
      if (--queue->expected_ == 0) queue->wakeup_.Unref(env);
    }
  }
}

// JavaScript thread, when the environment ends.
void WorkQueue::stop() {
  std::vector<pthread_t> threads;
  std::deque<std::unique_ptr<Task>> dropped;
  {
    std::lock_guard guard(lock_);
    stopped_ = true;
    for (LaneState* lane : {&bytes_, &structure_}) {
      for (Task* task : lane->running) task->cancel();
      std::move(lane->waiting.begin(), lane->waiting.end(), std::back_inserter(dropped));
      lane->waiting.clear();
      threads.insert(threads.end(), lane->threads.begin(), lane->threads.end());
      lane->wake.notify_all();
    }
  }
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  ready_.clear();
}

}  // namespace pcow::addon
