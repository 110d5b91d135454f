// The system calls of the monitor go past the sanitizers' interceptors (attach/system_calls.h).
#include "attach/system_calls.h"

#include <atomic>
#include <thread>

#include "check.h"

// The kernel gives an address again as soon as it is free. What one thread stored there before has
// nothing to do with what another one reads there now, and the thread sanitizer must not say so.
// The former thread maps and unmaps memory, and returns its address; the latter maps and reads
// other memory there.
template <typename Former>
static void at_the_same_address(const Former& map_and_unmap) {
  constexpr size_t kLength = 4096;
  // Relaxed, so that nothing but the unmapping comes between the two. The latter runs before the
  // former begins: otherwise its own stack could be put there.
  std::atomic<bool> runs{false};
  std::atomic<void*> free{nullptr};
  std::thread former([&] {
    while (!runs.load(std::memory_order_relaxed)) std::this_thread::yield();
    free.store(map_and_unmap(), std::memory_order_relaxed);
  });
  std::thread latter([&] {
    runs.store(true, std::memory_order_relaxed);
    void* place = nullptr;
    while (!(place = free.load(std::memory_order_relaxed))) std::this_thread::yield();
    void* const found = pcow::system_mmap(place, kLength, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(found == place);
    CHECK(static_cast<std::atomic<uint64_t>*>(found)->load() == 0);
    CHECK(pcow::system_munmap(found, kLength) == 0);
  });
  former.join();
  latter.join();
}

int main() {
  at_the_same_address([] {
    void* const found = pcow::system_mmap(nullptr, 4096, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(found != MAP_FAILED);
    *static_cast<volatile uint64_t*>(found) = 1;
    CHECK(pcow::system_munmap(found, 4096) == 0);
    return found;
  });
  // The sanitizer takes a mapping for a store, and its munmap(2) forgets whole pages only.
  at_the_same_address([] {
    void* const found = mmap(nullptr, 100, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(found != MAP_FAILED && munmap(found, 100) == 0);
    return found;
  });
  return 0;
}
