#include "monitor/clean_cache.h"

#include <algorithm>

#include "attach/system_calls.h"

namespace pcow {
namespace {

constexpr uint64_t kGroup = 4;  // units that are restored together
constexpr uint64_t kLargestUnit = 65536;

}  // namespace

CleanCache::CleanCache(Image* image, const View* view, FaultDescriptor* faults,
                       const RegionGeometry& geometry, const Regions& regions, uint64_t budget,
                       bool writable, Statistics* statistics)
    : image_(image),
      view_(view),
      faults_(faults),
      geometry_(geometry),
      regions_(regions),
      budget_(budget),
      writable_(writable),
      unit_(std::max(geometry.sub_block_size(), std::min(geometry.block_size(), kLargestUnit))),
      statistics_(statistics),
      buffer_(unit_ + Region::kLargestRead) {}

Result<void> CleanCache::serve(Region* region, uint64_t offset, uint64_t limit) {
  return copy(region, offset, ahead(region, offset, limit));
}

// How many bytes after the unit at `offset` to copy with it, because a sequential reader will want
// them: one copy of many pages replaces many faults. Stops at data that is already there. Does not
// push other copies out: a copy that was just made might be dropped before its reader runs again.
uint64_t CleanCache::ahead(Region* region, uint64_t offset, uint64_t limit) const {
  const uint64_t start = std::min((offset / unit_ + 1) * unit_, region->end());
  const uint64_t end =
      std::max(start, std::min({start + region->readers().ahead(offset), region->end(), limit}));
  uint64_t at = start;
  const auto fits = [&] { return has_room_for((at - offset) + unit_); };
  const auto is_there = [&] {
    return region->is_mapped(at) || region->is_clean(at) || region->is_shared(at);
  };
  while (at < end && !is_there() && fits()) at = std::min(end, at + unit_);
  region->readers().served_to(at);
  return at - start;
}

// Copies the unit at `offset`, and the `ahead` bytes after it.
Result<void> CleanCache::copy(Region* region, uint64_t offset, uint64_t ahead) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t start = offset / unit_ * unit_;
  uint64_t low = std::max(start, region->offset());
  uint64_t high = std::min(start + unit_ + ahead, region->end());
  auto count = image_->read(view_, low, buffer_.data(), high - low);
  if (!count && count.error().code == Code::kRemote && ahead) {
    // What a sequential reader will want may come later.
    high = std::min(start + unit_, region->end());
    count = image_->read(view_, low, buffer_.data(), high - low);
  }
  if (!count && (count.error().code == Code::kCorrupt || count.error().code == Code::kRemote)) {
    // A neighbour may be damaged, or remote: try the sub-block at `offset` alone.
    low = std::max(low, offset / sub * sub);
    high = std::min(high, offset / sub * sub + sub);
    count = image_->read(view_, low, buffer_.data(), high - low);
  }
  if (!count) return count.error();
  PCOW_TRY(put(region, low, high));
  // The unit that was asked for becomes the newest, so that it is dropped last.
  for (uint64_t unit = start + unit_; unit < high; unit += unit_) units_.push_back({region, unit});
  units_.push_back({region, start});
  faults_->wake(region->at(low), high - low);
  keep_budget();
  return {};
}

// Copies bytes [low, high) of the image from `buffer_`. In a writer's session, sub-blocks that the
// image itself holds are left out, because another mapping may change them without a fault.
Result<void> CleanCache::put(Region* region, uint64_t low, uint64_t high) {
  const uint64_t sub = geometry_.sub_block_size();
  const auto wanted = [&](uint64_t at) {
    return !region->is_mapped(at) && !region->is_shared(at) &&
           (!writable_ || image_->file_offset(at) == 0);
  };
  const auto next = [&](uint64_t at) { return std::min(high, at / sub * sub + sub); };
  for (uint64_t at = low; at < high;) {
    uint64_t end = at;
    while (end < high && wanted(end)) end = next(end);
    if (end == at) {
      at = next(at);
      continue;
    }
    PCOW_TRY(faults_->copy_protected(region->at(at), buffer_.data() + (at - low), end - at));
    for (; at < end; at = next(at)) {
      if (region->is_clean(at)) continue;
      region->set_clean(at, true);
      count(static_cast<int64_t>(sub));
    }
  }
  return {};
}

// Does not push other copies out: the copy that was just made might be dropped before its reader
// runs again, endlessly.
void CleanCache::serve_around(Region* region, uint64_t offset) {
  const uint64_t group = offset / (unit_ * kGroup) * (unit_ * kGroup);
  for (uint64_t at = std::max(group, region->offset());
       at < std::min(group + unit_ * kGroup, region->end()); at = (at / unit_ + 1) * unit_) {
    if (!has_room_for(unit_) || faults_->is_awaited()) return;
    if (!region->was_in_use(at) || region->is_mapped(at) || region->is_clean(at) ||
        region->is_shared(at))
      continue;
    if (!copy(region, at, 0)) return;  // an access to it will fault, and report the error
  }
}

void CleanCache::drop(Region* region, uint64_t from, uint64_t to) {
  const uint64_t sub = geometry_.sub_block_size();
  for (uint64_t at = from; at < to;) {
    const uint64_t end = std::min(to, at / sub * sub + sub);
    if (region->is_clean(at)) {
      // These pages are write-protected copies: dropping them loses nothing, and the next access
      // faults again.
      system_madvise(region->at(at), end - at, MADV_DONTNEED);
      forget(region, at);
      statistics_->clean_dropped += sub;
    }
    at = end;
  }
}

void CleanCache::drop_elsewhere(const Region* region, uint64_t from, uint64_t to) {
  for (const auto& other : regions_)
    if (other.get() != region)
      drop(other.get(), std::max(from, other->offset()), std::min(to, other->end()));
}

void CleanCache::forget(Region* region, uint64_t offset) {
  if (!region->is_clean(offset)) return;
  region->set_clean(offset, false);
  count(-static_cast<int64_t>(geometry_.sub_block_size()));
}

void CleanCache::forget_units(const Region* region, uint64_t from, uint64_t to) {
  std::erase_if(units_, [&](const Unit& unit) {
    return unit.region == region && unit.offset >= from && unit.offset < to;
  });
}

void CleanCache::keep_budget() {
  // Never drop the newest unit: the thread that waits for it would fault forever.
  while (!has_room_for(0) && units_.size() > 1) {
    const Unit oldest = units_.front();
    units_.pop_front();
    drop(oldest.region, std::max(oldest.offset, oldest.region->offset()),
         std::min(oldest.offset + unit_, oldest.region->end()));
  }
}

void CleanCache::count(int64_t bytes) {
  statistics_->clean_bytes += static_cast<uint64_t>(bytes);
  of_process_ += bytes;
}

bool CleanCache::has_room_for(uint64_t bytes) const {
  return of_process_.load(std::memory_order_relaxed) + static_cast<int64_t>(bytes) <=
         static_cast<int64_t>(budget_);
}

}  // namespace pcow
