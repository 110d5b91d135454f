#include "monitor/direct_reads.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

#include "monitor/statistics.h"

namespace pcow::direct_reads {
namespace {

std::atomic<uint32_t> under_way{0};
std::atomic<uint32_t> holders{0};

void wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void wait_while(std::atomic<uint32_t>* word, uint32_t value, const timespec* limit) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, limit, nullptr, 0);
}

void end_one() {
  if (--under_way == 0 && holders != 0) wake_all(&under_way);
}

}  // namespace

// Count first, then check whether reads are held back. hold_back() does it in the opposite order,
// so that at least one of the two sees the other.
Read::Read() {
  for (;;) {
    under_way++;
    const uint32_t held = holders;
    if (held == 0) return;
    end_one();
    wait_while(&holders, held, nullptr);
  }
}

Read::~Read() { end_one(); }

bool hold_back(int patience_ms) {
  holders++;
  const uint64_t end = monotonic_ns() + uint64_t{static_cast<unsigned>(patience_ms)} * 1'000'000;
  while (const uint32_t count = under_way) {
    const uint64_t now = monotonic_ns();
    if (now >= end) {
      go_on();
      return false;
    }
    const timespec limit = {static_cast<time_t>((end - now) / 1'000'000'000),
                            static_cast<long>((end - now) % 1'000'000'000)};
    wait_while(&under_way, count, &limit);
  }
  return true;
}

void go_on() {
  holders--;
  wake_all(&holders);
}

}  // namespace pcow::direct_reads
