// The monitor's own threads. They do everything that concerns an image. A thread of the application
// that calls one of the interposed functions only asks and waits (run()). This makes the monitor
// safe in any process:
//   - They have their own table of file descriptors (unshare(2), CLONE_FILES). A program that
//     closes descriptors it does not know closes none of ours; its limits do not count ours; a
//     child of fork(2) inherits none of them.
//   - They have their own root and working directory: after chroot(2) they still reach the mount's
//     socket (except if the process had a filter of system calls by then, which may forbid this).
//   - They block all signals and are never cancelled. So neither a signal handler nor
//     pthread_cancel(3) interrupts a thread that holds one of their locks, and a signal handler
//     that accesses an image finds a thread that serves it.
//   - fork(2) copies none of them: their locks do not matter in the child.
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <optional>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow {

// A thread with all signals blocked. Its name is shown in /proc/PID/task/TID/comm: at most 15
// bytes.
class Thread {
 public:
  Thread() = default;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  // Call it on a thread of the monitor, so that the new thread shares its descriptors. Fails if the
  // process may not have more threads (RLIMIT_NPROC, pids.max of a control group).
  Result<void> start(const char* name, std::function<void()> main);
  bool runs() const { return runs_; }
  void join();

 private:
  pthread_t thread_{};
  bool runs_ = false;
};

namespace threads {

// What a thread of the application waits for. It lives on that thread's stack: a request takes no
// memory from the application's allocator, which may be the caller.
struct Task {
  void (*work)(Task*) = nullptr;
  Task* next = nullptr;
  std::atomic<uint32_t> done{0};
};

// Makes the first of the monitor's threads, unless it exists. Any thread. Fails as Thread::start
// does, or if the kernel has no close_range(2) (before Linux 5.9), or if a filter of system calls
// forbids pidfd_getfd(2).
Result<void> begin();
// In a child of fork(2), which has none of the threads: a later begin() makes its own.
void forget();
// Whether begin() has succeeded in this very process, and not only in its parent.
bool begun();
// Whether the calling thread is one of the monitor's.
bool is_own();

void ask_and_wait(Task* task);

// Runs `work` on one of the monitor's threads, and returns its result. After begin(). Any thread,
// also in a signal handler. Not a cancellation point.
template <typename Work>
auto run(const Work& work) {
  using Outcome = decltype(work());
  struct Asked : Task {
    const Work* what;
    std::optional<Outcome> outcome;
  } asked;
  asked.what = &work;
  asked.work = [](Task* task) {
    auto* self = static_cast<Asked*>(task);
    self->outcome.emplace((*self->what)());
  };
  ask_and_wait(&asked);
  return std::move(*asked.outcome);
}

// Asks for short time slices. Then the calling thread, when it is woken for a fault, does not have
// to wait until the thread that runs on its processor has used up its usual milliseconds: sched(7),
// sched_setattr(2), Linux 6.12; older kernels ignore it. The thread's total share of the processor
// does not change.
void ask_for_short_slices();

// Duplicates the application's descriptor `number` into the monitor's table: pidfd_getfd(2), Linux
// 5.6. `thread`: a thread of the application that has it open. Returns an empty Descriptor, with
// errno set, if that fails.
protocol::Descriptor borrow(int number, pid_t thread);

}  // namespace threads
}  // namespace pcow
