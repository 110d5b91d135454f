#include "monitor/shared_base.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "attach/system_calls.h"
#include "monitor/statistics.h"

namespace pcow {
namespace {

using protocol::Descriptor;
using segment::kContent;
using segment::kLargePage;
using segment::kSlices;
using segment::kSliceSize;

// More would fill the socket while the control thread is busy.
constexpr size_t kMostAsked = 16;
// How far ahead of a reader shared memory is wanted, as a multiple of what is copied ahead. To make
// large pages for a want, however long it is, may take the mount several milliseconds.
constexpr uint64_t kWantAhead = 64;
// As long as it takes to copy a slice, about.
constexpr uint64_t kPatienceNs = 250'000;
constexpr std::chrono::microseconds kNap{20};
constexpr uint64_t kShortestHopelessNs = 4'000'000;
constexpr uint64_t kLongestHopelessNs = 1'000'000'000;
constexpr uint64_t kAnswerNs = 5'000'000'000;
constexpr uint64_t kRefusedNs = 1'000'000'000;
// Of the descriptors that this process may have, the part that segments may be.
constexpr size_t kPartOfDescriptors = 4;

size_t most_segments() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return 0;
  return static_cast<size_t>(std::min<rlim_t>(limit.rlim_cur, 65536)) / kPartOfDescriptors;
}

// Null if the descriptor is not a segment whose length cannot change: an access to it might raise
// SIGBUS.
const segment::Filled* map_filled(int descriptor) {
  struct stat status;
  if (fstat(descriptor, &status) < 0 || status.st_size != static_cast<off_t>(segment::kLength))
    return nullptr;
  const int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & segment::kSeals) != segment::kSeals) return nullptr;
  void* page =
      system_mmap(nullptr, sizeof(segment::Filled), PROT_READ, MAP_SHARED, descriptor, kContent);
  return page == MAP_FAILED ? nullptr : static_cast<const segment::Filled*>(page);
}

}  // namespace

SharedBase::SharedBase(FaultDescriptor* faults)
    : faults_(faults), most_segments_(most_segments()) {}

SharedBase::~SharedBase() {
  for (const auto& [number, segment] : segments_)
    if (segment.filled)
      system_munmap(const_cast<segment::Filled*>(segment.filled), sizeof(segment::Filled));
}

void SharedBase::offer(uint64_t size, int eventfd) {
  const std::lock_guard lock(mutex_);
  offered_ = true;
  eventfd_ = eventfd;
  size_ = size;
}

void SharedBase::withdraw() {
  const std::lock_guard lock(mutex_);
  offered_ = false;
  asked_.clear();
  wants_.clear();
}

bool SharedBase::is_offered() {
  const std::lock_guard lock(mutex_);
  return offered_;
}

bool SharedBase::is_filled(uint64_t slice) const {
  const auto segment = segments_.find(slice / kSlices);
  return segment != segments_.end() && segment->second.filled &&
         segment::is_filled(*segment->second.filled, slice % kSlices);
}

bool SharedBase::is_asked(uint64_t slice) const {
  return std::any_of(asked_.begin(), asked_.end(), [&](const auto& item) {
    return slice >= item.first && slice - item.first < std::max<uint64_t>(item.second.count, 1);
  });
}

bool SharedBase::is_refused(uint64_t slice, uint64_t now) const {
  const auto segment = segments_.find(slice / kSlices);
  if (segment == segments_.end()) return false;
  const auto refused = segment->second.refused_until_ns.find(slice);
  return refused != segment->second.refused_until_ns.end() && now < refused->second;
}

bool SharedBase::may_have(uint64_t number) const {
  return number * kContent < size_ &&
         (segments_.contains(number) || segments_.size() < most_segments_);
}

uint64_t SharedBase::filled_to(uint64_t offset, uint64_t limit) {
  const std::lock_guard lock(mutex_);
  limit = std::min(limit, (offset / kContent + 1) * kContent);
  uint64_t end = offset;
  while (end < limit && is_filled(end / kSliceSize))
    end = std::min(limit, (end / kSliceSize + 1) * kSliceSize);
  return end;
}

uint64_t SharedBase::missing_to(uint64_t offset, uint64_t limit) {
  const std::lock_guard lock(mutex_);
  uint64_t end = (offset / kSliceSize + 1) * kSliceSize;
  while (end < limit && !is_filled(end / kSliceSize)) end += kSliceSize;
  return std::min(end, limit);
}

bool SharedBase::want(uint64_t from, uint64_t to) {
  const std::lock_guard lock(mutex_);
  if (!offered_ || from >= size_) return false;
  const uint64_t first = from / kSliceSize;
  const uint64_t number = first / kSlices;
  const auto known = segments_.find(number);
  if (!may_have(number)) return false;
  if (from == to && known != segments_.end() && known->second.memory) return false;
  const uint64_t now = monotonic_ns();
  std::erase_if(asked_, [&](const auto& item) { return item.second.until_ns < now; });
  if (asked_.size() >= kMostAsked) return false;
  const uint64_t end = std::min({(to + kSliceSize - 1) / kSliceSize, (number + 1) * kSlices,
                                 (size_ + kSliceSize - 1) / kSliceSize});
  const auto is_open = [&](uint64_t slice) {
    return !is_filled(slice) && !is_asked(slice) && !is_refused(slice, now);
  };
  uint64_t low = first;
  while (low < end && !is_open(low)) low++;
  uint64_t high = low;
  while (high < end && is_open(high)) high++;
  if (low == high && (from != to || is_asked(first) || is_refused(first, now))) return false;
  if (from == to) low = high = first;
  const auto ask = [&](uint64_t slice, uint64_t count) {
    asked_[slice] = {count, now + kAnswerNs};
    wants_.push_back({slice, count});
  };
  // The segment comes with the first answer.
  const bool is_new = known == segments_.end() || !known->second.memory;
  const uint64_t alone = is_new ? std::min(high - low, kLargePage / kSliceSize) : 0;
  if (alone) ask(low, alone);
  if (high - low > alone || !alone) ask(low + alone, high - low - alone);
  const uint64_t one = 1;
  (void)!write(eventfd_, &one, sizeof one);
  return true;
}

void SharedBase::want_ahead(uint64_t from, uint64_t ahead) {
  from = (from + kLargePage - 1) / kLargePage * kLargePage;
  const uint64_t to = from + ahead * kWantAhead;
  uint64_t open = from;
  {
    const std::lock_guard lock(mutex_);
    while (open < to && (is_filled(open / kSliceSize) || is_asked(open / kSliceSize)))
      open += kSliceSize;
  }
  if (open >= to || to - open < (to - from) / 2) return;
  (void)want(open, to);
  if (const uint64_t next = (open / kContent + 1) * kContent; next < to) (void)want(next, to);
}

bool SharedBase::is_coming(uint64_t offset) {
  const std::lock_guard lock(mutex_);
  return offered_ && is_asked(offset / kSliceSize) && monotonic_ns() >= hopeless_until_ns_;
}

bool SharedBase::await(uint64_t offset) {
  for (const uint64_t end = monotonic_ns() + kPatienceNs;; std::this_thread::sleep_for(kNap)) {
    const std::lock_guard lock(mutex_);
    const uint64_t now = monotonic_ns();
    const bool filled = is_filled(offset / kSliceSize);
    if (!filled && offered_ && now < end) continue;
    // On a busy machine a nap takes longer than copies would, even if the slice is filled then.
    if (filled && now < end) {
      hopeless_ns_ = 0;
    } else {
      hopeless_ns_ = std::clamp(2 * hopeless_ns_, kShortestHopelessNs, kLongestHopelessNs);
      hopeless_until_ns_ = now + hopeless_ns_;
    }
    return filled;
  }
}

std::vector<SharedBase::Want> SharedBase::take_wants() {
  const std::lock_guard lock(mutex_);
  return std::exchange(wants_, {});
}

SharedBase::Bytes SharedBase::take_answer(uint64_t slice, Descriptor memory) {
  const std::lock_guard lock(mutex_);
  const auto asked = asked_.find(slice);
  // An answer may come after this process has ceased to wait for it. Its segment is used even then:
  // the mount gives each segment once.
  if (asked == asked_.end() && (!memory || !may_have(slice / kSlices))) return {};
  const uint64_t count = asked == asked_.end() ? 0 : asked->second.count;
  if (asked != asked_.end()) asked_.erase(asked);
  Segment& segment = segments_[slice / kSlices];
  // After the mount died, the next one gives another segment in place of this one. What is mapped
  // of the former one stays mapped.
  if (const segment::Filled* filled = memory ? map_filled(memory.number()) : nullptr) {
    if (segment.filled)
      system_munmap(const_cast<segment::Filled*>(segment.filled), sizeof(segment::Filled));
    segment.filled = filled;
    segment.memory = std::make_shared<Descriptor>(std::move(memory));
  }
  const uint64_t until = monotonic_ns() + kRefusedNs;
  for (uint64_t at = slice; at < slice + count; at++) {
    if (is_filled(at))
      segment.refused_until_ns.erase(at);
    else
      segment.refused_until_ns[at] = until;
  }
  return {slice * kSliceSize, (slice + std::max<uint64_t>(count, 1)) * kSliceSize};
}

Result<char*> SharedBase::map(uint64_t from, uint64_t to, int protection) {
  std::shared_ptr<Descriptor> memory;
  {
    const std::lock_guard lock(mutex_);
    // Perhaps the segment is another one by now, in which less is filled.
    for (uint64_t at = from; at < to; at = (at / kSliceSize + 1) * kSliceSize)
      if (!is_filled(at / kSliceSize))
        return Error(Code::kNotFound, "not all of the shared memory is filled");
    memory = segments_.at(from / kContent).memory;
  }
  return faults_->map_protected(memory->number(), from % kContent, to - from, protection);
}

}  // namespace pcow
