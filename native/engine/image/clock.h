#pragma once

#include <cstdint>
#include <ctime>

namespace pcow {

// The time of day in nanoseconds since the epoch: the time of layers and failures.
inline int64_t realtime_ns() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace pcow
