// SIGBUS in the engine's own mappings of files. The kernel raises it where a page is not there: the file was cut short by somebody else,
// the disk cannot read the page or has no space for it, a server has forgotten the file. Whoever may write one image must not end a
// process that serves others.
//
// A handler puts zeroed memory, of nobody's file, over the whole mapping, and marks it as torn; the access goes on, and what it was for
// fails with an error (Mapping::is_torn, file.h). On the good path nothing is asked but one flag. A SIGBUS anywhere else goes to the
// handler that was there before, or to what there would be without one.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pcow {

// A mapping that the handler knows. Any thread may look at `torn`; the rest is the registry's.
struct GuardedRange {
  std::atomic<bool> torn{false};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{
      0};  // 0: nobody's. Zeroed before `begin` changes, and set after it: the handler takes no lock
  std::atomic<int> protection{0};
  std::atomic<std::atomic<bool>*> told{nullptr};
  GuardedRange* next = nullptr;
};

// From the mapping to the unmapping, which comes after unguard(). `told` (may be null) becomes true as well, and outlives the guard.
GuardedRange* guard_range(void* address, size_t length, int protection, std::atomic<bool>* told);
void unguard_range(GuardedRange* range);

// For a library that stands between a program and sigaction(2): the program's own action for SIGBUS, which the guard hands on what is
// not its own. false: there is no guard yet, and the program's call may go on as it is.
bool exchange_bus_action(const struct sigaction* action, struct sigaction* before);

// While it lives, this thread (and those that it starts meanwhile) takes no signal but SIGBUS: held, one from an access of its own would
// end the process without a handler.
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
