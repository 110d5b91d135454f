// The monitor's own threads. Everything that concerns an image is done on them, and a thread of the application that calls one
// of the interposed functions only asks and waits (run()). That is what makes the monitor safe in any process:
//   - they have a table of file descriptors of their own (unshare(2), CLONE_FILES). A program that closes descriptors it does
//     not know closes none of ours, its limits do not count ours, and a child of fork(2) inherits none of them
//   - they have a root and a working directory of their own: chroot(2) does not cut them off from the mount's socket (but where the
//     process has a filter of system calls by then, which may forbid that)
//   - they block all signals and are never cancelled, so a lock of theirs is never held by a thread that a signal handler
//     or pthread_cancel(3) has taken away, and a signal handler that touches an image finds somebody who serves it
//   - fork(2) copies none of them: no lock of theirs matters in the child
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <optional>

#include "attach/packet.h"
#include "engine/error.h"

namespace pcow {

// A thread with all signals blocked. Its name is seen in /proc/PID/task/TID/comm: at most 15 bytes.
class Thread {
 public:
  Thread() = default;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  // Called on a thread of the monitor, so that the new one shares its descriptors. Fails where the process may have no more
  // threads (RLIMIT_NPROC, pids.max of a control group).
  Result<void> start(const char* name, std::function<void()> main);
  bool runs() const { return runs_; }
  void join();

 private:
  pthread_t thread_{};
  bool runs_ = false;
};

namespace threads {

// What a thread of the application waits for. It lives on that thread's stack: asking takes no memory from the application's
// allocator, which may be the caller.
struct Task {
  void (*work)(Task*) = nullptr;
  Task* next = nullptr;
  std::atomic<uint32_t> done{0};
};

// Makes the first of the monitor's threads, where there is none yet. Any thread. Fails as Thread::start does, or where the
// kernel has no close_range(2) (before Linux 5.9).
Result<void> begin();
// In a child of fork(2), which has none of them: a later begin() makes its own.
void forget();
// Whether begin() has succeeded in this very process, and not just in its parent.
bool begun();
// Whether the calling thread is one of them.
bool is_own();

void ask_and_wait(Task* task);

// Runs `work` on one of the monitor's threads, and returns what it returns. After begin(). Any thread, also in a signal
// handler; not a cancellation point.
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

// The application's descriptor `number` in the monitor's table: pidfd_getfd(2), Linux 5.6. `thread`: one of the application that
// has it open. None, with errno, where that is not to be had.
protocol::Descriptor borrow(int number, pid_t thread);

}  // namespace threads
}  // namespace pcow
