#include "monitor/stalls.h"

#include <unistd.h>

#include "monitor/log.h"

namespace pcow {
namespace {

constexpr uint64_t kReportEveryNs = 10'000'000'000;
constexpr uint64_t kLongFetchNs = 5'000'000'000;

}  // namespace

void Stalls::tell_if_base_is_missing(const Error& error) {
  const uint64_t one = 1;
  if (error.code == Code::kBaseMissing && missing_bases_ >= 0)
    (void)!write(missing_bases_, &one, sizeof one);
}

void Stalls::report(const Error& error) {
  if (error.remote) return report_fetch(*error.remote);
  if (ended_) return;
  statistics_->stalls++;
  tell_if_base_is_missing(error);
  notice(error.message + "; the guest is paused until this is fixed");
}

void Stalls::report_fetch(const RemoteBlock& block) {
  if (ended_) return;
  fetches_->want(block);
  const Fetches::Waiting longest = fetches_->longest();
  if (longest.ns < kLongFetchNs) return;
  notice("the guest has been waiting for " + std::to_string(longest.ns / 1'000'000'000) +
         " s for bytes of " + block.path + " that have not been fetched yet" +
         (longest.why.empty() ? "" : ": " + longest.why));
}

void Stalls::notice(const std::string& what) {
  const uint64_t now = monotonic_ns();
  if (reported_ns_ && now - reported_ns_ < kReportEveryNs) return;
  reported_ns_ = now;
  log_notice(what);
}

}  // namespace pcow
