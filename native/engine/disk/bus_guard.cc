#include "engine/disk/bus_guard.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <vector>

namespace pcow {
namespace {

// The handler may walk the list from here at any time: entries are added and used again, but never
// removed.
std::atomic<GuardedRange*> ranges{nullptr};
// The actions that were installed before the guard, and those that the program has asked for since.
// No lock guards them, because a program may ask in a signal handler. Each new action gets another
// element, because the handler may be reading the one before.
std::array<struct sigaction, 64> actions;
std::atomic<size_t> actions_kept{0};
std::atomic<const struct sigaction*> previous{nullptr};
// Greater than 0 while the guard itself changes the action for SIGBUS: this must reach the kernel
// although the monitor interposes the function.
std::atomic<int> own_changes{0};

struct Registry {
  std::mutex mutex;  // guards the fields below and additions to `ranges`
  std::vector<GuardedRange*> spare;
};
Registry& registry() {
  static auto* made = new Registry;  // never destroyed: threads may use it until the process ends
  return *made;
}

void keep(const struct sigaction& action) {
  struct sigaction& place = actions[actions_kept++ % actions.size()];
  place = action;
  previous.store(&place, std::memory_order_release);
}

// Does what would happen without the guard.
void pass_on(int number, siginfo_t* info, void* context) {
  const struct sigaction& action = *previous.load(std::memory_order_acquire);
  if (action.sa_flags & SA_SIGINFO) return action.sa_sigaction(number, info, context);
  // By kill(2): no access faults again when the handler returns.
  const bool sent = info->si_code <= 0;
  if (action.sa_handler == SIG_IGN && sent) return;
  if (action.sa_handler != SIG_IGN && action.sa_handler != SIG_DFL)
    return action.sa_handler(number);
  own_changes++;  // never decremented: this ends the process
  signal(number, SIG_DFL);
  if (sent) raise(number);
}

// A thread that is here because of its own access keeps the mapping alive, so the entry that
// contains the address does not change; the other entries are only read.
GuardedRange* range_around(uintptr_t address) {
  for (GuardedRange* range = ranges.load(std::memory_order_acquire); range; range = range->next) {
    const uintptr_t end = range->end.load(std::memory_order_acquire);
    if (address < end && address >= range->begin.load(std::memory_order_acquire) &&
        range->end.load(std::memory_order_acquire) == end)
      return range;
  }
  return nullptr;
}

// The mark is set before the pages are replaced, so a thread that sees zeros sees the mark. The
// whole mapping is replaced: replacing single pages of a file that is gone would need a mapping for
// each page.
bool tear(uintptr_t address) {
  GuardedRange* range = range_around(address);
  if (!range) return false;
  range->torn.store(true);
  if (auto* told = range->told.load(std::memory_order_acquire)) told->store(true);
  const uintptr_t begin = range->begin.load(std::memory_order_acquire);
  // The system call itself, because the monitor interposes the function.
  return syscall(SYS_mmap, begin, range->end.load(std::memory_order_acquire) - begin,
                 range->protection.load(std::memory_order_acquire),
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, off_t{0}) != -1;
}

// Async-signal-safe: it uses only atomics and system calls.
void on_bus_error(int number, siginfo_t* info, void* context) {
  const int err = errno;
  const bool by_access = info->si_code > 0 && info->si_code != BUS_MCEERR_AO;
  if (!by_access || !tear(reinterpret_cast<uintptr_t>(info->si_addr)))
    pass_on(number, info, context);
  errno = err;
}

// A child of fork(2) has none of the mappings (file.cc): these addresses now belong to the child.
void forget_in_child() {
  for (GuardedRange* range = ranges.load(); range; range = range->next) range->end.store(0);
  registry().mutex.unlock();
}

// The caller holds the registry's lock.
void install() {
  if (previous.load()) return;
  pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                 forget_in_child);
  own_changes++;
  struct sigaction before = {};
  sigaction(SIGBUS, nullptr, &before);
  keep(before);
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_mask = before.sa_mask;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  sigaction(SIGBUS, &action, nullptr);
  own_changes--;
}

}  // namespace

GuardedRange* guard_range(void* address, size_t length, int protection, std::atomic<bool>* told) {
  const std::lock_guard lock(registry().mutex);
  install();
  GuardedRange* range;
  const bool fresh = registry().spare.empty();
  if (fresh) {
    range = new GuardedRange;
  } else {
    range = registry().spare.back();
    registry().spare.pop_back();
  }
  range->torn.store(false);
  range->told.store(told);
  range->protection.store(protection);
  range->begin.store(reinterpret_cast<uintptr_t>(address));
  range->end.store(reinterpret_cast<uintptr_t>(address) + length);
  if (fresh) {
    range->next = ranges.load();
    ranges.store(range, std::memory_order_release);
  }
  return range;
}

void unguard_range(GuardedRange* range) {
  range->end.store(0);
  const std::lock_guard lock(registry().mutex);
  registry().spare.push_back(range);
}

bool exchange_bus_action(const struct sigaction* action, struct sigaction* before) {
  const struct sigaction* kept = previous.load(std::memory_order_acquire);
  if (!kept || own_changes.load() != 0) return false;
  const struct sigaction then = *kept;  // `action` and `before` may be the same object
  if (action) keep(*action);
  if (before) *before = then;
  return true;
}

}  // namespace pcow
