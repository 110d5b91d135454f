// The thread that shows memory of the mount's clean store (sharing.h), and which ranges may show
// it: those where this image reads as the layer below it in another image, because none of its own
// layers holds anything there.
//
// The memory is mapped elsewhere, populated and write-protected, and only then moved into place by
// one mremap(2): there is never a moment in which a write would not be noticed.
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
  for (uint64_t from = asked.from; from < asked.to; from += segment::kSliceSize)
    if (shared_.filled_to(from, from + 1) > from)
      sharing_.add({from, from + segment::kSliceSize, {}});
}

void Session::share() {
  threads::ask_for_short_slices();
  auto rest = kShortestRest;
  while (!sharing_.ended()) {
    const auto task = sharing_.wait(rest);
    if (!task) {
      rest = replace_copies() ? kShortestRest : std::min(2 * rest, kLongestRest);
      continue;
    }
    rest = kShortestRest;
    for (const Target& target : targets(*task)) show(target);
    if (!task->fault) continue;
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
        if (copied <= kWorthReplacing && copied + sub > kWorthReplacing) slices.push_back(at);
        copied += sub;
      }
    }
    for (const uint64_t at : slices) {
      if (!sharing_.is_empty()) return true;
      const uint64_t from = at / segment::kSliceSize * segment::kSliceSize;
      const bool filled = shared_.filled_to(from, from + 1) > from;
      done |= filled || shared_.want(from, from + segment::kSliceSize);
      if (filled)
        for (const Target& target : targets({from, from + segment::kSliceSize, {}})) show(target);
    }
  }
  return done;
}

// Where the memory is to be shown: for a fault in its region, otherwise in each region with clean
// copies of it.
std::vector<Session::Target> Session::targets(const SharingQueue::Task& task) {
  const Handling held(this);
  std::vector<Target> found;
  for (const auto& region : regions_) {
    const int protection = region->protection();
    if (protection != PROT_READ && protection != (PROT_READ | PROT_WRITE)) continue;
    const uint64_t from = std::max(task.from, region->offset());
    const uint64_t to = std::min(task.to, region->end());
    if (from >= to) continue;
    bool wanted = false;
    if (task.fault) {
      const uint64_t at =
          region->contains(task.fault->address) ? region->offset_of(task.fault->address) : to;
      wanted = at < to && !region->is_shared(at) && base_.reads_as_base(at);
    } else {
      const uint64_t sub = geometry_.sub_block_size();
      for (uint64_t at = from; at < to && !wanted; at = at / sub * sub + sub)
        wanted = region->is_clean(at) && base_.reads_as_base(at);
    }
    if (wanted && mapper_.has_room_for_shared())
      found.push_back({region->at(from), from, to, protection});
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
