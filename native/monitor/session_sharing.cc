// The thread that shows memory of the mount's clean store (sharing.h), and which ranges may show
// it: those where this image reads as the layer below it in another image, because none of its own
// layers holds anything there.
//
// The memory is mapped elsewhere, populated and write-protected, and only then moved into place by
// one mremap(2): there is never a moment in which a write would not be noticed.
#include <sys/prctl.h>

#include <algorithm>

#include "attach/system_calls.h"
#include "monitor/log.h"
#include "monitor/session.h"

namespace pcow {
namespace {

constexpr std::chrono::milliseconds kShortestRest{50};
constexpr std::chrono::milliseconds kLongestRest{3200};
constexpr uint64_t kWorthReplacing = 65536;  // bytes of copies in a slice: more are worth it

}  // namespace

Result<void> Session::offer_store(uint64_t size, int eventfd) {
  if (!faults_->can_share())
    return Error(Code::kUnsupported, EOPNOTSUPP,
                 "this kernel cannot write-protect shared memory (Linux 5.19 or newer is needed)");
  if (!sharing_thread_.runs()) PCOW_TRY(sharing_thread_.start("pcow-share", [this] { share(); }));
  shared_.offer(size, eventfd);
  return {};
}

void Session::end_sharing() {
  sharing_.end();
  if (sharing_thread_.runs()) sharing_thread_.join();
}

void Session::take_shared(uint64_t slice, protocol::Descriptor segment) {
  const SharedBase::Bytes asked = shared_.take_answer(slice, std::move(segment));
  // Copies that were made meanwhile are no longer needed.
  if (asked.from < asked.to) sharing_.add({asked.from, asked.to, {}});
}

void Session::share() {
  threads::ask_for_short_slices();
  prctl(PR_SET_TIMERSLACK, 1000UL);  // SharedBase::await() sleeps for less than the usual slack
  auto rest = kShortestRest;
  while (!sharing_.ended()) {
    const auto task = sharing_.wait(rest);
    if (!task) {
      rest = replace_copies() ? kShortestRest : std::min(2 * rest, kLongestRest);
      continue;
    }
    rest = kShortestRest;
    if (!task->fault) {
      for (const Target& target : copies_in(task->from, task->to)) show(target);
      continue;
    }
    if (!task->coming || shared_.await(task->from))
      if (const auto target = target_of(*task)) show(*target);
    // If nothing could be shown there, the fault thread makes a copy.
    const Handling held(this);
    given_back_.push_back(*task->fault);
    given_back_.back().alone = true;
  }
}

// A reader may be faster than the mount. It goes on with copies of its own, which are replaced when
// there is nothing else to do: what the mount has by now is shown, and the rest is asked for.
// Slices of which only one part was read are left alone. Ends early when there is something else to
// do. Returns whether there was anything to do.
bool Session::replace_copies() {
  if (statistics_.clean_bytes == 0) return false;
  std::vector<std::pair<size_t, uint64_t>> chunks;  // number of the region, start of the chunk
  {
    const Handling held(this);
    for (size_t i = 0; i < regions_.size(); i++)
      for (const uint64_t start : regions_[i]->chunk_starts()) chunks.emplace_back(i, start);
  }
  bool done = false;
  for (const auto& [number, start] : chunks) {
    std::vector<uint64_t> slices;
    {
      const Handling held(this);
      if (number >= regions_.size()) break;
      const Region& region = *regions_[number];
      const uint64_t sub = geometry_.sub_block_size();
      const uint64_t end = std::min(start + geometry_.chunk_size(), region.end());
      uint64_t copied = 0;
      for (uint64_t at = std::max(start, region.offset()); at < end; at = at / sub * sub + sub) {
        if (at % segment::kSliceSize == 0) copied = 0;
        if (!region.is_clean(at) || !base_.reads_as_base(at)) continue;
        if (copied <= kWorthReplacing && copied + sub > kWorthReplacing)
          slices.push_back(at / segment::kSliceSize * segment::kSliceSize);
        copied += sub;
      }
    }
    for (size_t i = 0; i < slices.size();) {
      if (!sharing_.is_empty()) return true;
      const auto is_filled = [&](uint64_t at) { return shared_.filled_to(at, at + 1) > at; };
      const uint64_t from = slices[i];
      uint64_t to = from;
      while (i < slices.size() && slices[i] == to && !is_filled(to)) {
        to += segment::kSliceSize;
        i++;
      }
      if (to > from) {
        done |= shared_.want(from, to);
        continue;
      }
      done = true;
      i++;
      for (const Target& target : copies_in(from, from + segment::kSliceSize)) show(target);
    }
  }
  return done;
}

bool Session::may_show(const Region& region) const {
  const int protection = region.protection();
  return (protection == PROT_READ || protection == (PROT_READ | PROT_WRITE)) &&
         mapper_.has_room_for_shared();
}

// Where the memory is to be shown for a fault. Nothing if the region, or the page, has changed.
std::optional<Session::Target> Session::target_of(const SharingQueue::Task& task) {
  const Handling held(this);
  for (const auto& region : regions_) {
    if (!region->contains(task.fault->address) || !may_show(*region)) continue;
    const uint64_t at = region->offset_of(task.fault->address);
    const uint64_t from = std::max(task.from, region->offset());
    const uint64_t to = std::min(task.to, region->end());
    if (at < from || at >= to || region->is_shared(at) || !base_.reads_as_base(at)) continue;
    return Target{region->at(from), from, to, region->protection()};
  }
  return std::nullopt;
}

// Filled slices between these bytes of which a region has clean copies.
std::vector<Session::Target> Session::copies_in(uint64_t from, uint64_t to) {
  const Handling held(this);
  const uint64_t sub = geometry_.sub_block_size();
  std::vector<Target> found;
  for (uint64_t slice = from; slice < to; slice += segment::kSliceSize) {
    if (shared_.filled_to(slice, slice + 1) == slice) continue;
    for (const auto& region : regions_) {
      const uint64_t first = std::max(slice, region->offset());
      const uint64_t last = std::min(slice + segment::kSliceSize, region->end());
      bool wanted = false;
      for (uint64_t at = first; at < last && !wanted; at = at / sub * sub + sub)
        wanted = region->is_clean(at) && base_.reads_as_base(at);
      if (wanted && may_show(*region))
        found.push_back({region->at(first), first, last, region->protection()});
    }
  }
  return found;
}

void Session::show(const Target& target) {
  auto made = shared_.map(target.from, target.to, target.protection);
  if (!made) {
    log_detail(made.error().message);
    return;
  }
  const Handling held(this);
  put_in_place(*made, target);
}

// Moves the parts of the prepared mapping that may be shown, and unmaps the others. The region may
// have been unmapped meanwhile, and sub-blocks in it may have become the image's own.
void Session::put_in_place(char* made, const Target& target) {
  const uint64_t sub = geometry_.sub_block_size();
  const auto found = std::find_if(regions_.begin(), regions_.end(), [&](const auto& region) {
    return region->contains(target.address);
  });
  Region* const region = found == regions_.end() ? nullptr : found->get();
  base_.look_again_for_reader(target.from, target.to);
  const bool is_same = region && region->offset_of(target.address) == target.from &&
                       region->end() >= target.to && region->protection() == target.protection;
  const auto next = [&](uint64_t at) { return std::min(target.to, at / sub * sub + sub); };
  const auto may_show = [&](uint64_t at) {
    return is_same && !region->is_mapped(at) && !region->is_shared(at) && base_.reads_as_base(at);
  };
  const int64_t before = is_same ? mapper_.boundaries_between(*region, target.from, target.to) : 0;
  bool failed = false;
  for (uint64_t at = target.from; at < target.to;) {
    const bool shown = !failed && may_show(at);
    uint64_t end = next(at);
    while (end < target.to && (failed || may_show(end) == shown)) end = next(end);
    char* const part = made + (at - target.from);
    if (shown && system_mremap(part, end - at, end - at, MREMAP_MAYMOVE | MREMAP_FIXED,
                               region->at(at)) != MAP_FAILED) {
      for (; at < end; at = next(at)) {
        clean_.forget(region, at);
        region->set_shared(at, true);
        statistics_.shared_bytes += sub;
      }
      continue;
    }
    failed |= shown;
    system_munmap(part, end - at);
    at = end;
  }
  if (!is_same) return;
  mapper_.count_boundaries(region, target.from,
                           mapper_.boundaries_between(*region, target.from, target.to) - before);
  faults_->wake(target.address, target.to - target.from);
}

}  // namespace pcow
