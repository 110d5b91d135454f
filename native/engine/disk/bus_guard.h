// SIGBUS in the engine's own mappings of files. The kernel raises it if a page cannot be provided:
// another process has cut the file short, the disk cannot read the page or has no space for it, or
// a server has lost the file. A user who may write one image must not be able to end a process that
// serves others.
//
// A signal handler maps anonymous zeroed memory over the whole mapping, and marks the mapping as
// torn. The access then continues, and the operation that made it fails with an error
// (Mapping::is_torn, file.h). An ordinary access costs nothing; its caller only reads one flag
// afterwards. A SIGBUS anywhere else goes to the handler that was installed before, or has its
// default effect.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pcow {

// A mapping that the handler knows. Any thread may read `torn`; the registry uses the other fields.
struct GuardedRange {
  std::atomic<bool> torn{false};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{
      // 0: the entry is unused. It becomes 0 before `begin` changes, and is set after it, because
      // the handler takes no lock.
      0};
  std::atomic<int> protection{0};
  std::atomic<std::atomic<bool>*> told{nullptr};
  GuardedRange* next = nullptr;
};

// Guards a range from its mapping until it is unmapped; call unguard_range() before munmap(2).
// `told` (may be null) becomes true as well when the range is torn, and must outlive the guard.
GuardedRange* guard_range(void* address, size_t length, int protection, std::atomic<bool>* told);
void unguard_range(GuardedRange* range);

// For a library that interposes sigaction(2): sets the program's own action for SIGBUS, which gets
// every SIGBUS that is not the guard's. Returns false if there is no guard yet, and the program's
// call may go to the kernel.
bool exchange_bus_action(const struct sigaction* action, struct sigaction* before);

// While it lives, this thread (and threads that it starts meanwhile) blocks all signals except
// SIGBUS: if SIGBUS were blocked, an access of the thread itself would end the process without
// calling the handler.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_;
};

}  // namespace pcow
