// What a session tells when a fault, or another access to the image, cannot be served: on standard error, in the statistics, and to the
// attachment, which can ask the mount for a base that is missing.
//
// Any thread of the monitor may call tell_of() and tell_if_base_is_missing(); report() is called with `handling` held.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/error.h"
#include "monitor/statistics.h"

namespace pcow {

class Stalls {
 public:
  explicit Stalls(Statistics* statistics) : statistics_(statistics) {}

  // `eventfd` is written to whenever something cannot be read because a file of the image's chain was not handed over.
  void tell_of(int eventfd) { missing_bases_ = eventfd; }
  void tell_if_base_is_missing(const Error& error);
  // A fault waits, and is tried again. Said once in a while.
  void report(const Error& error);
  void end() { ended_ = true; }  // the process is about to end: nothing is said any more

 private:
  Statistics* const statistics_;
  std::atomic<int> missing_bases_{-1};
  std::atomic<bool> ended_{false};
  uint64_t reported_ns_ = 0;  // guarded by `handling`
};

}  // namespace pcow
