#include "monitor/fetches.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "monitor/statistics.h"

namespace pcow {
namespace {

// The mount permits no more (kMostFetches in addon/attach_server.cc).
constexpr size_t kMostFetches = 64;
constexpr uint64_t kAgainNs = 1'000'000'000;      // after a failure
constexpr uint64_t kForgottenNs = 2'000'000'000;  // several times as long as until the next try

}  // namespace

void Fetches::offer(int eventfd) {
  const std::lock_guard lock(mutex_);
  offered_ = true;
  eventfd_ = eventfd;
}

void Fetches::withdraw() {
  const std::lock_guard lock(mutex_);
  offered_ = false;
  wants_.clear();
  for (auto& [key, wanted] : wanted_) wanted.asked = 0;
}

// A fault whose mapping is gone no longer says that it waits.
void Fetches::forget_old(uint64_t now) {
  std::erase_if(wanted_, [&](const auto& item) {
    return !item.second.asked && item.second.wanted_ns + kForgottenNs < now;
  });
}

void Fetches::want(const RemoteBlock& block) {
  const std::lock_guard lock(mutex_);
  const uint64_t now = monotonic_ns();
  forget_old(now);
  Wanted& wanted =
      wanted_.try_emplace(Key(block.uuid, block.layer, block.block), Wanted{now, now, 0, 0, {}})
          .first->second;
  wanted.wanted_ns = now;
  const auto is_asked = [](const auto& item) { return item.second.asked != 0; };
  if (!offered_ || wanted.asked || now < wanted.not_before_ns ||
      std::count_if(wanted_.begin(), wanted_.end(), is_asked) >=
          static_cast<ptrdiff_t>(kMostFetches))
    return;
  if (++last_number_ == 0) last_number_ = 1;
  wanted.asked = last_number_;
  wants_.push_back({last_number_, block});
  const uint64_t one = 1;
  (void)!write(eventfd_, &one, sizeof one);
}

std::vector<Fetches::Want> Fetches::take_wants() {
  const std::lock_guard lock(mutex_);
  return std::exchange(wants_, {});
}

bool Fetches::take_answer(uint32_t number, const std::string& why) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(wanted_.begin(), wanted_.end(), [&](const auto& item) {
    return number && item.second.asked == number;
  });
  if (found == wanted_.end()) return false;
  if (why.empty()) {
    wanted_.erase(found);
    return true;
  }
  found->second.asked = 0;
  found->second.not_before_ns = monotonic_ns() + kAgainNs;
  found->second.why = why;
  return true;
}

Fetches::Waiting Fetches::longest() {
  const std::lock_guard lock(mutex_);
  const uint64_t now = monotonic_ns();
  forget_old(now);
  Waiting longest;
  for (const auto& [key, wanted] : wanted_)
    if (now - wanted.since_ns >= longest.ns) longest = {now - wanted.since_ns, wanted.why};
  return longest;
}

}  // namespace pcow
