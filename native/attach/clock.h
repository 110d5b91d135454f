// The clock of everything that waits, or measures how long something took.
#pragma once

#include <cstdint>
#include <ctime>

namespace pcow {

// Nanoseconds since some time in the past. It goes on while the time of day is changed.
inline uint64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// The same in milliseconds.
inline int64_t monotonic_ms() { return static_cast<int64_t>(monotonic_ns() / 1'000'000); }

}  // namespace pcow
