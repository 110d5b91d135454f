// The system calls of the monitor go past the sanitizers' interceptors (attach/system_calls.h).
#include "attach/system_calls.h"

#include <atomic>
#include <thread>

#include "check.h"

// The kernel gives an address again as soon as it is free. What one thread stored there before has
// nothing to do with what another one reads there now, and the thread sanitizer must not say so.
static void an_address_that_is_used_again() {
  constexpr size_t kLength = 4096;
  const auto map = [](void* address, int flags) {
    void* const found = pcow::system_mmap(address, kLength, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    CHECK(found != MAP_FAILED);
    return static_cast<std::atomic<uint64_t>*>(found);
  };
  std::atomic<uint64_t>* const place = map(nullptr, 0);
  // Relaxed, so that nothing but the unmapping comes between the two.
  std::atomic<bool> free{false};
  std::thread first([&] {
    *reinterpret_cast<volatile uint64_t*>(place) = 1;
    CHECK(pcow::system_munmap(place, kLength) == 0);
    free.store(true, std::memory_order_relaxed);
  });
  std::thread second([&] {
    while (!free.load(std::memory_order_relaxed)) std::this_thread::yield();
    CHECK(map(place, MAP_FIXED_NOREPLACE)->load() == 0);
    CHECK(pcow::system_munmap(place, kLength) == 0);
  });
  first.join();
  second.join();
}

int main() {
  an_address_that_is_used_again();
  return 0;
}
