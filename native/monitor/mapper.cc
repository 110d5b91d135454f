#include "monitor/mapper.h"

#include <algorithm>
#include <cerrno>
#include <string>

#include "attach/segment.h"
#include "attach/system_calls.h"
#include "monitor/log.h"

namespace pcow {
namespace {

// boundaries; completing a chunk that has fewer gains nothing
constexpr int64_t kWorthPromoting = 8;
// A chunk of more pieces of the file is moved.
constexpr uint64_t kFewPieces = 4;

}  // namespace

Result<void> Mapper::map_extent(Region* region, uint64_t offset, const Extent& extent, bool made) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t low = std::max(extent.offset, region->offset());
  const uint64_t high = std::min(extent.offset + extent.length, region->end());
  uint64_t from = made ? low : std::max(low, offset / sub * sub);
  while (from > low && !region->is_mapped(from - 1)) from = std::max(low, (from - 1) / sub * sub);
  uint64_t to = made ? high : std::min(high, offset / sub * sub + sub);
  while (to < high && !region->is_mapped(to)) to = std::min(high, to / sub * sub + sub);

  const uint64_t in_file = extent.file_offset + (from - extent.offset);
  void* address = region->at(from);
  // Other mappings of the image may still show these blocks as clean copies. Drop them before this
  // mapping can be written.
  clean_->drop_elsewhere(region, from, to);
  PCOW_TRY(replace_shared_elsewhere(region, from, to));
  const auto try_map = [&] {
    return map_blocks(address, to - from, region->protection(), in_file);
  };
  if (!try_map() && (errno != ENOMEM || !promote() || !try_map()))
    return system_error(errno,
                        image_->info().path + ": cannot map a block of the image into memory");

  // A boundary between two mappings lies where mapped and unmapped sub-blocks meet, and where two
  // mapped runs are not neighbours in the file.
  const bool left = from > region->offset() && region->is_mapped(from - 1);
  const bool right = to < region->end() && region->is_mapped(to);
  const bool joins_left = left && image_->file_offset(from - 1) == in_file - 1;
  const bool joins_right = right && image_->file_offset(to) == in_file + (to - from);
  count_boundaries(
      region, from,
      (joins_left ? 0 : 1) + (joins_right ? 0 : 1) - boundaries_between(*region, from, to));
  take_over(region, from, to);
  faults_->wake(address, to - from);
  return {};
}

int64_t Mapper::boundaries_between(const Region& region, uint64_t from, uint64_t to) const {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t block_size = geometry_.block_size();
  // Equal for neighbours that are in one mapping: 0 of the reservation, a segment of the store, or
  // the distance between the image and its file, which is the same in a whole block.
  struct In {
    enum { kReservation, kFile, kStore } what = kReservation;
    uint64_t where = 0;
    bool operator==(const In&) const = default;
  };
  In last;
  uint64_t last_block = ~uint64_t{0};  // of which `last` is
  const auto mapping_at = [&](uint64_t at) -> In {
    if (at < region.offset() || at >= region.end()) return {};
    if (region.is_shared(at)) return {In::kStore, at / segment::kContent};
    if (!region.is_mapped(at)) return {};
    if (at / block_size != last_block) last = {In::kFile, image_->file_offset(at) - at};
    last_block = at / block_size;
    return last;
  };
  int64_t count = 0;
  In before = from > 0 ? mapping_at(from - 1) : In{};
  for (uint64_t at = from; at < to; at = at / sub * sub + sub) {
    const In mapping = mapping_at(at);
    if (mapping != before) count++;
    before = mapping;
  }
  return count + (mapping_at(to) != before ? 1 : 0);
}

void Mapper::map_moved(Region* region, const Extent& extent) {
  const uint64_t from = std::max(extent.offset, region->offset());
  const uint64_t to = std::min(extent.offset + extent.length, region->end());
  if (from >= to || !map_blocks(region->at(from), to - from, region->protection(),
                                extent.file_offset + (from - extent.offset)))
    return;
  take_over(region, from, to);
  faults_->wake(region->at(from), to - from);
}

void Mapper::count_again(Region* region, uint64_t chunk) {
  const int64_t before = region->boundaries(chunk);
  const uint64_t from = std::max(chunk, region->offset());
  const uint64_t to = std::min(chunk + geometry_.chunk_size(), region->end());
  count_boundaries(region, chunk, boundaries_between(*region, from, to) - before);
}

// Other mappings of the image may still show these blocks as memory of the clean store, which
// nobody can drop on this thread: mremap(2) waits for it to read an event. They get the image's own
// blocks as well.
Result<void> Mapper::replace_shared_elsewhere(const Region* region, uint64_t from, uint64_t to) {
  const uint64_t sub = geometry_.sub_block_size();
  for (const auto& other : regions_) {
    if (other.get() == region) continue;
    const uint64_t end = std::min(to, other->end());
    for (uint64_t at = std::max(from, other->offset()); at < end;) {
      const auto next = [&](uint64_t offset) { return std::min(end, offset / sub * sub + sub); };
      if (!other->is_shared(at)) {
        at = next(at);
        continue;
      }
      auto extent = image_->held(at);
      if (!extent) return extent.error();
      const uint64_t most = std::min(end, extent->offset + extent->length);
      uint64_t last = next(at);
      while (last < most && other->is_shared(last)) last = next(last);
      const int64_t before = boundaries_between(*other, at, last);
      if (last > most || !map_blocks(other->at(at), last - at, other->protection(),
                                     extent->file_offset + (at - extent->offset)))
        return system_error(errno,
                            image_->info().path + ": cannot map a block of the image into memory");
      take_over(other.get(), at, last);
      count_boundaries(other.get(), at, boundaries_between(*other, at, last) - before);
      at = last;
    }
  }
  return {};
}

// Maps the image's own blocks over the present contents of the range. A child of fork(2) does not
// get the mapping: it would store into the image beside its parent, even into blocks that have been
// frozen since.
bool Mapper::map_blocks(void* address, size_t length, int protection, uint64_t in_file) {
  const int flags = (synced_ ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED) | MAP_FIXED;
  return system_mmap(address, length, protection, flags, image_->descriptor(),
                     static_cast<off_t>(in_file)) != MAP_FAILED &&
         system_madvise(address, length, MADV_DONTFORK) == 0;
}

// Records that the range is mapped.
void Mapper::take_over(Region* region, uint64_t from, uint64_t to) {
  const uint64_t sub = geometry_.sub_block_size();
  base_->are_held(from, to);
  for (uint64_t at = from; at < to; at = at / sub * sub + sub) {
    clean_->forget(region, at);
    if (region->is_shared(at)) {
      region->set_shared(at, false);
      statistics_->shared_bytes -= sub;
    }
    if (region->is_mapped(at)) continue;
    region->set_mapped(at, true);
    statistics_->own_bytes += sub;
  }
}

void Mapper::count_boundaries(Region* region, uint64_t offset, int64_t change) {
  region->boundaries(offset) += change;
  statistics_->mappings = static_cast<uint64_t>(of_process_.fetch_add(change) + change);
}

void Mapper::note_promotion() {
  if (statistics_->promotions++ > 0) return;
  log_notice(image_->info().path +
             ": the image is too fragmented for this process's mapping limit (" +
             std::to_string(budget_) +
             "), so whole chunks of it are copied, which takes disk space. As root, \"sysctl "
             "vm.max_map_count=1048576\" "
             "raises the limit for processes that start afterwards");
}

// Completes the chunk that costs the most mappings, and maps it in one piece (or a few). Returns
// false if this must wait for the moving thread.
bool Mapper::promote() {
  if (moving_->is_wanted()) return false;
  Region* worst = nullptr;
  uint64_t chunk = 0;
  int64_t most = kWorthPromoting;
  for (const auto& region : regions_) {
    int64_t boundaries;
    const uint64_t start = region->most_fragmented(&boundaries);
    if (boundaries <= most) continue;
    most = boundaries;
    worst = region.get();
    chunk = start;
  }
  if (!worst) return false;
  if (moving_->runs() && image_->pieces_when_complete(chunk) > kFewPieces) {
    moving_->want(chunk);
    return false;
  }
  clean_->drop_elsewhere(worst, chunk, chunk + geometry_.chunk_size());
  FaultWork work;
  if (auto completed = image_->complete_chunk(chunk, &work); !completed) {
    stalls_->report(completed.error());
    return false;
  }
  statistics_->copied_bytes += work.copied_bytes;
  const uint64_t end = std::min(chunk + geometry_.chunk_size(), worst->end());
  if (auto replaced = replace_shared_elsewhere(worst, std::max(chunk, worst->offset()), end);
      !replaced) {
    stalls_->report(replaced.error());
    return false;
  }
  note_promotion();
  int64_t pieces = 0;
  if (!map_chunk(worst, chunk, &pieces)) return false;
  count_boundaries(worst, chunk, pieces + 1 - most);
  log_detail(image_->info().path + ": completed the chunk at " + std::to_string(chunk) +
             ", which had " + std::to_string(most) + " boundaries");
  return true;
}

// Maps a complete chunk, in as few pieces as its blocks form in the file. Parts that are already
// mapped are mapped again: they are the same pages of the same file, so no data is lost.
bool Mapper::map_chunk(Region* region, uint64_t chunk, int64_t* pieces) {
  const uint64_t end = std::min(chunk + geometry_.chunk_size(), region->end());
  uint64_t expected = 0;
  for (uint64_t at = std::max(chunk, region->offset()); at < end;) {
    auto extent = image_->held(at);
    if (!extent || !extent->length) return false;
    const uint64_t to = std::min(end, extent->offset + extent->length);
    const uint64_t in_file = extent->file_offset + (at - extent->offset);
    if (!map_blocks(region->at(at), to - at, region->protection(), in_file)) return false;
    if (in_file != expected) (*pieces)++;
    expected = in_file + (to - at);
    take_over(region, at, to);
    faults_->wake(region->at(at), to - at);
    at = to;
  }
  return true;
}

}  // namespace pcow
