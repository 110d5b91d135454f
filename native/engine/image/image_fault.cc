// What a monitor's page fault needs: own blocks of the active layer, with disk space behind them, to map into memory.
//
// The order is that of everything that becomes a layer's own (own_block.h). What comes on top is that nothing is mapped that has no
// disk space, because it was written (a copy) or allocated: a store of the guest must never find the disk full, for that is SIGBUS.
// Only whole sub-blocks that are `written` are mapped, so a sync that takes down the bits covers the guest's stores too:
// the kernel writes dirty pages of the mapping back by the same fdatasync.

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "engine/image/fault_plan.h"
#include "engine/image/own_block.h"

namespace pcow {
namespace {

constexpr uint64_t kCopiesAheadShare = 4;  // of what would be allocated ahead where nothing must be copied

}  // namespace

// Both ways from the sub-block at `offset`, as far as sub-blocks are own and neighbours in the file. Whole blocks count in
// one step: this is done twice a fault.
Extent ImageState::held_extent(uint64_t offset) const {
  const uint32_t shift = geometry.sub_block_shift();
  const uint32_t per_block = geometry.sub_blocks();
  const uint16_t full = geometry.full_mask();
  const uint64_t size = directory.active_layer().size;
  const uint64_t chunk_bytes = uint64_t{kBlocksPerChunk} << geometry.block_shift();
  const uint64_t window = std::min(chunk_bytes, std::max<uint64_t>(kLargestRun, geometry.block_size()));
  const uint64_t from = offset / window * window;
  const uint64_t to = std::min(from + window, round_up<uint64_t>(size, geometry.sub_block_size()));

  uint64_t block = offset >> geometry.block_shift();
  Entry entry = Entry::unpack(active->load(block));
  const auto middle = static_cast<uint32_t>((offset & (geometry.block_size() - 1)) >> shift);
  if (!entry.index || !(entry.written >> middle & 1)) return {};
  // Sub-blocks [first, end) of `block` to begin with, then of the image.
  uint32_t first = middle;
  while (first > 0 && (entry.written >> (first - 1) & 1)) first--;
  uint32_t end = middle + 1;
  while (end < per_block && (entry.written >> end & 1)) end++;
  uint64_t low = block * per_block + first;
  uint64_t high = block * per_block + end;
  const uint64_t place = (uint64_t{entry.index} << geometry.block_shift()) + (uint64_t{first} << shift);

  uint32_t before = 0;
  for (uint64_t other = block, index = entry.index; first == 0 && other > from >> geometry.block_shift(); other--) {
    const Entry left = Entry::unpack(active->load(other - 1));
    if (left.index == 0 || left.index != --index) break;
    const auto held =
        left.written == full
            ? per_block
            : static_cast<uint32_t>(std::countl_one(static_cast<uint16_t>(left.written << (16 - per_block))));
    before += held;
    if (held < per_block) break;
  }
  for (uint64_t index = entry.index; end == per_block && high < to >> shift;) {
    const Entry right = Entry::unpack(active->load(++block));
    if (right.index == 0 || right.index != ++index) break;
    const auto held = right.written == full ? per_block : static_cast<uint32_t>(std::countr_one(right.written));
    high += held;
    if (held < per_block) break;
  }
  low -= before;
  high = std::min(high, (to + (uint64_t{1} << shift) - 1) >> shift);
  Extent extent;
  extent.offset = low << shift;
  extent.length = std::min(high << shift, round_up<uint64_t>(size, kPageSize)) - extent.offset;
  extent.place = place - (uint64_t{before} << shift);
  return extent;
}

// A discard of a part of a block leaves own sub-blocks without disk space: what is to be stored to gets it again.
Result<Extent> ImageState::mappable_extent(uint64_t offset) const {
  const Extent extent = held_extent(offset);
  if (extent.length && writable()) PCOW_TRY(make_mappable(extent.place, extent.length));
  return extent;
}

Result<Extent> Image::held(uint64_t offset) const {
  const ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  if (state.closed) return state.closed_error();
  if (!state.lent.load(std::memory_order_relaxed)) state.lent.store(true);
  auto extent = state.mappable_extent(offset);
  if (extent && state.writable())
    PCOW_TRY(state.untorn());  // a reader asks Image::read() next, which maps the table anew
  return extent;
}

uint64_t Image::place(uint64_t offset) const {
  const ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  const auto within = static_cast<uint32_t>(offset & (state.geometry.block_size() - 1));
  const Entry entry = Entry::unpack(state.active->load(offset >> state.geometry.block_shift()));
  if (!entry.index || !(entry.written >> (within >> state.geometry.sub_block_shift()) & 1)) return 0;
  return (uint64_t{entry.index} << state.geometry.block_shift()) + within;
}

int Image::descriptor() const { return state_->file->descriptor(); }

// With the chunk's lock held, and the table's page ensured: every sub-block becomes own, and has disk space.
Result<Entry> ImageState::complete_block(uint64_t block, const Entry& before, FaultWork* work) {
  const auto missing = static_cast<uint16_t>(geometry.full_mask() & ~before.written);
  return make_own(active, block, before, {missing}, Purpose::kData, [&](uint64_t place) -> Result<void> {
    auto lower = mask_below(block);
    if (!lower) return lower.error();
    // In a fresh block only what lies below must be written; in an old one the other sub-blocks too, for an unfinished
    // write may have left something in them.
    const auto wanted = static_cast<uint16_t>(before.index ? missing : missing & *lower);
    // What is written has its disk space by that; what is our own already may have lost it by a discard.
    if (wanted != geometry.full_mask()) PCOW_TRY(make_mappable(place, geometry.block_size()));
    PCOW_TRY(copy_below(block, place, wanted));
    if (wanted & *lower) {
      work->copied = true;
      work->copied_bytes += static_cast<uint64_t>(std::popcount(wanted)) << geometry.sub_block_shift();
    } else {
      work->expanded = true;
    }
    return {};
  });
}

// Sub-blocks of a block, as the layers below hold them, to `place` in the file.
Result<void> ImageState::copy_below(uint64_t block, uint64_t place, uint16_t mask) {
  return copy_sub_blocks(place, mask, [&](uint32_t within, char* to, uint32_t length) {
    return read_below(block, {}, within, to, length);
  });
}

Result<Extent> ImageState::make_writable_locked(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  if (auto held = mappable_extent(offset); !held || held->length) return held;
  const uint64_t block = offset >> geometry.block_shift();
  PCOW_TRY(active->ensure(block / kBlocksPerChunk));
  auto lower = confirm(below->look(block));
  if (!lower) return lower.error();

  const std::lock_guard lock(chunk_lock(block));
  const size_t own_sources = below->sources().size() - base_sources.size();
  const FaultScene scene{Entry::unpack(active->load(block)), lower->mask, lower->nearest < own_sources,
                         static_cast<uint32_t>((offset & (geometry.block_size() - 1)) >> geometry.sub_block_shift())};
  Result<Made> made = Made{};
  switch (plan_fault(geometry, scene, hint)) {
    case FaultPlan::kMap: return mappable_extent(offset);  // made by somebody else since the look above
    case FaultPlan::kCopySubBlock: made = copy_sub_block(block, scene, work); break;
    case FaultPlan::kComplete: made = complete(block, scene, hint.ahead, work); break;
    case FaultPlan::kExpand: made = expand(block, hint.ahead, work); break;
  }
  if (!made) return made.error();
  // What was made here, and no more of its neighbours: they have been mapped, or have a fault of their own.
  Extent extent = held_extent(offset);
  const uint64_t end = std::min(made->to, extent.offset + extent.length);
  if (extent.offset < made->from) {
    extent.place += made->from - extent.offset;
    extent.offset = made->from;
  }
  extent.length = end - extent.offset;
  return extent;
}

// This and the next three: with the chunk's lock held, and the table's page ensured.
Result<ImageState::Made> ImageState::copy_sub_block(uint64_t block, const FaultScene& scene, FaultWork* work) {
  const auto mask = static_cast<uint16_t>(1u << scene.number);
  const auto owned = make_own(active, block, scene.entry, {mask}, Purpose::kData,
                              [&](uint64_t place) { return copy_below(block, place, mask); });
  if (!owned) return owned.error();
  work->copied = true;
  work->copied_bytes += geometry.sub_block_size();
  const uint64_t from = (block << geometry.block_shift()) + (uint64_t{scene.number} << geometry.sub_block_shift());
  return Made{from, from + geometry.sub_block_size()};
}

// The block, and where something of it lies below, followers in the chunk that do so as a whole. Not as many as `ahead` bytes hold, for
// each costs a copy.
Result<ImageState::Made> ImageState::complete(uint64_t block, const FaultScene& scene, uint64_t ahead,
                                              FaultWork* work) {
  if (auto completed = complete_block(block, scene.entry, work); !completed) return completed.error();
  const uint64_t from = block << geometry.block_shift();
  uint64_t next = block + 1;
  const auto made = [&] { return Made{from, next << geometry.block_shift()}; };
  if (!(scene.below & ~scene.entry.written)) return made();
  const uint64_t limit = std::min({(block / kBlocksPerChunk + 1) * kBlocksPerChunk, active->entries(),
                                   block + 1 + (ahead >> geometry.block_shift()) / kCopiesAheadShare});
  for (; next < limit; next++) {
    const Entry entry = Entry::unpack(active->load(next));
    auto lower = mask_below(next);
    if (!lower) return lower.error();
    if (!entry.empty() || *lower != geometry.full_mask()) break;
    auto completed = complete_block(next, entry, work);
    // The one that is needed is there: a full disk is no reason to make its writer wait, and a damaged neighbour none to fail.
    if (!completed && (completed.error().code == Code::kNoSpace || completed.error().code == Code::kCorrupt)) break;
    if (!completed) return completed.error();
  }
  return made();
}

// The block, and as many of its followers in the chunk as are empty all the way down and as `ahead` bytes hold, in one go. A run that
// would pass a multiple of kLargestRun ends there, so that the next one is a whole one: aligned in the image, in the file and in memory,
// it can be one huge page.
Result<ImageState::Made> ImageState::expand(uint64_t block, uint64_t ahead, FaultWork* work) {
  const uint64_t whole = std::max<uint64_t>(kLargestRun >> geometry.block_shift(), 1);
  uint64_t limit = block + 1 + (ahead >> geometry.block_shift());
  if (limit / whole > block / whole) limit = std::max(limit / whole * whole, block + 1);
  limit = std::min({(block / kBlocksPerChunk + 1) * kBlocksPerChunk, active->entries(), limit});
  uint64_t end = block + 1;
  while (end < limit && !active->load(end)) {
    auto lower = mask_below(end);
    if (!lower || *lower) break;
    end++;
  }
  auto count = make_own_run(block, end - block);
  if (!count) return count.error();
  work->expanded = true;
  return Made{block << geometry.block_shift(), (block + *count) << geometry.block_shift()};
}

Result<Extent> Image::make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<Extent> {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
    if (!state.lent.load(std::memory_order_relaxed)) state.lent.store(true);
    return state.make_writable_locked(offset, hint, work);
  };
  return state.noted(while_stale(state, attempt));
}

Result<void> Image::allocate_ahead(uint64_t offset, uint64_t length) {
  ImageState& state = *state_;
  const uint64_t block = offset >> state.geometry.block_shift();
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
    if (block >= state.active->entries()) return {};
    PCOW_TRY(state.active->ensure(block / kBlocksPerChunk));
    auto lower = state.mask_below(block);
    if (!lower) return lower.error();
    const std::lock_guard storing(state.chunk_lock(block));
    if (*lower || state.active->load(block)) return {};
    FaultWork ignored;
    auto made = state.expand(block, length - std::min<uint64_t>(length, state.geometry.block_size()), &ignored);
    return made ? Result<void>() : made.error();
  };
  return while_stale(state, attempt);  // not noted: nobody asked for it, and whoever does will be told
}

Result<void> Image::complete_chunk(uint64_t offset, FaultWork* work) {
  ImageState& state = *state_;
  const uint64_t chunk = (offset >> state.geometry.block_shift()) / kBlocksPerChunk;
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
    PCOW_TRY(state.active->ensure(chunk));
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, state.active->entries());
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      const std::lock_guard storing(state.chunk_lock(block));
      const Entry entry = Entry::unpack(state.active->load(block));
      if (entry.index && entry.written == state.geometry.full_mask()) continue;
      auto completed = state.complete_block(block, entry, work);
      if (!completed) return completed.error();
    }
    return {};
  };
  return state.noted(while_stale(state, attempt));
}

}  // namespace pcow
