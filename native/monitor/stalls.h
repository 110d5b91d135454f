// Reports that a fault, or another access to the image, cannot be served: to standard error, in the
// statistics, and to the attachment, which asks the mount for a missing base, or to fetch bytes.
//
// Any thread of the monitor may call tell_of() and tell_if_base_is_missing(); report() is called
// with `handling` held.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/error.h"
#include "monitor/fetches.h"
#include "monitor/statistics.h"

namespace pcow {

class Stalls {
 public:
  Stalls(Statistics* statistics, Fetches* fetches) : statistics_(statistics), fetches_(fetches) {}

  // `eventfd` is written whenever a read fails because a file of the image's chain was not handed
  // over.
  void tell_of(int eventfd) { missing_bases_ = eventfd; }
  void tell_if_base_is_missing(const Error& error);
  // A fault waits, and is tried again. Logs this at most every ten seconds.
  void report(const Error& error);
  // … until remote bytes have been fetched. That is usual, and logged only if it takes long.
  void report_fetch(const RemoteBlock& block);
  void end() { ended_ = true; }  // the process is about to end: report nothing more

 private:
  void notice(const std::string& what);

  Statistics* const statistics_;
  Fetches* const fetches_;
  std::atomic<int> missing_bases_{-1};
  std::atomic<bool> ended_{false};
  uint64_t reported_ns_ = 0;  // guarded by `handling`
};

}  // namespace pcow
