#include "monitor/stalls.h"

#include <unistd.h>

#include "monitor/log.h"

namespace pcow {
namespace {

constexpr uint64_t kReportEveryNs = 10'000'000'000;

}  // namespace

void Stalls::tell_if_base_is_missing(const Error& error) {
  const uint64_t one = 1;
  if (error.code == Code::kBaseMissing && missing_bases_ >= 0)
    (void)!write(missing_bases_, &one, sizeof one);
}

void Stalls::report(const Error& error) {
  if (ended_) return;
  statistics_->stalls++;
  tell_if_base_is_missing(error);
  const uint64_t now = monotonic_ns();
  if (reported_ns_ && now - reported_ns_ < kReportEveryNs) return;
  reported_ns_ = now;
  log_notice(error.message + "; the guest is paused until this is fixed");
}

}  // namespace pcow
