// Page faults of a monitored process: they need own blocks of the active layer, with disk space,
// which the monitor maps into memory.
//
// The order is that of everything that becomes a layer's own (own_blocks.h). In addition, only what
// has disk space is mapped, because it was written (a copy) or allocated: a store of the guest that
// found the disk full would raise SIGBUS. Only whole sub-blocks that are `written` are mapped, so a
// sync that notes the bits covers the guest's stores, too: the same fdatasync writes the mapping's
// dirty pages back.

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "engine/image/image_state.h"

namespace pcow {
namespace {

// Divides what would be allocated ahead if nothing had to be copied.
constexpr uint64_t kCopiesAheadShare = 4;

}  // namespace

// Goes in both directions from the sub-block at `offset`, as far as sub-blocks are own and
// neighbours in the file. Whole blocks are passed in one step, because every fault does this twice.
Extent ActiveLayer::held_extent(uint64_t offset) const {
  const uint32_t shift = image_.geometry.sub_block_shift();
  const uint32_t per_block = image_.geometry.sub_blocks();
  const uint16_t full = image_.geometry.full_mask();
  const uint64_t size = layers_.active_layer().size;
  const uint64_t chunk_bytes = uint64_t{kBlocksPerChunk} << image_.geometry.block_shift();
  const uint64_t window =
      std::min(chunk_bytes, std::max<uint64_t>(kLargestRun, image_.geometry.block_size()));
  const uint64_t from = offset / window * window;
  const uint64_t to =
      std::min(from + window, round_up<uint64_t>(size, image_.geometry.sub_block_size()));

  uint64_t block = offset >> image_.geometry.block_shift();
  Entry entry = Entry::unpack(layers_.active()->load(block));
  const auto middle = static_cast<uint32_t>((offset & (image_.geometry.block_size() - 1)) >> shift);
  if (!entry.index || !(entry.written >> middle & 1)) return {};
  // Sub-blocks [first, end), first within `block`, then within the image.
  uint32_t first = middle;
  while (first > 0 && (entry.written >> (first - 1) & 1)) first--;
  uint32_t end = middle + 1;
  while (end < per_block && (entry.written >> end & 1)) end++;
  uint64_t low = block * per_block + first;
  uint64_t high = block * per_block + end;
  const uint64_t in_file =
      (uint64_t{entry.index} << image_.geometry.block_shift()) + (uint64_t{first} << shift);

  uint32_t before = 0;
  for (uint64_t other = block, index = entry.index;
       first == 0 && other > from >> image_.geometry.block_shift(); other--) {
    const Entry left = Entry::unpack(layers_.active()->load(other - 1));
    if (left.index == 0 || left.index != --index) break;
    const auto held = left.written == full
                          ? per_block
                          : static_cast<uint32_t>(std::countl_one(
                                static_cast<uint16_t>(left.written << (16 - per_block))));
    before += held;
    if (held < per_block) break;
  }
  for (uint64_t index = entry.index; end == per_block && high < to >> shift;) {
    const Entry right = Entry::unpack(layers_.active()->load(++block));
    if (right.index == 0 || right.index != ++index) break;
    const auto held =
        right.written == full ? per_block : static_cast<uint32_t>(std::countr_one(right.written));
    high += held;
    if (held < per_block) break;
  }
  low -= before;
  high = std::min(high, (to + (uint64_t{1} << shift) - 1) >> shift);
  Extent extent;
  extent.offset = low << shift;
  extent.length = std::min(high << shift, round_up<uint64_t>(size, kPageSize)) - extent.offset;
  extent.file_offset = in_file - (uint64_t{before} << shift);
  return extent;
}

// A discard of a part of a block leaves own sub-blocks without disk space: allocate it again before
// anything is stored there.
Result<Extent> ActiveLayer::mappable_extent(uint64_t offset) const {
  const Extent extent = held_extent(offset);
  if (extent.length && image_.writable())
    PCOW_TRY(own_blocks_.make_mappable(extent.file_offset, extent.length));
  return extent;
}

Result<Extent> Image::held(uint64_t offset) const {
  ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  state.durability.note_lent();
  auto extent = state.active_layer.mappable_extent(offset);
  if (extent && state.writable())
    // A reader then calls Image::read(), which maps the table again.
    PCOW_TRY(state.layers.untorn());
  return extent;
}

uint64_t ActiveLayer::own_offset(uint64_t offset) const {
  const Geometry& geometry = image_.geometry;
  const auto within = static_cast<uint32_t>(offset & (geometry.block_size() - 1));
  const Entry entry = Entry::unpack(layers_.active()->load(offset >> geometry.block_shift()));
  if (!entry.index || !(entry.written >> (within >> geometry.sub_block_shift()) & 1)) return 0;
  return (uint64_t{entry.index} << geometry.block_shift()) + within;
}

uint64_t Image::file_offset(uint64_t offset) const {
  const ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  return state.active_layer.own_offset(offset);
}

int Image::descriptor() const { return state_->file->descriptor(); }

// Every sub-block becomes own, with disk space. The caller holds the chunk's lock, and has ensured
// the table's page.
Result<Entry> ActiveLayer::complete_block(uint64_t block, const Entry& before, FaultWork* work) {
  const Geometry& geometry = image_.geometry;
  const auto missing = static_cast<uint16_t>(geometry.full_mask() & ~before.written);
  const auto fill = [&](uint64_t block_offset) -> Result<void> {
    auto lower = layers_.mask_below(block);
    if (!lower) return lower.error();
    // In a new block only what lower layers hold must be written. In an old one the other
    // sub-blocks must be, too, because an unfinished write may have left something there.
    const auto wanted = static_cast<uint16_t>(before.index ? missing : missing & *lower);
    // What is written gets disk space by that. Sub-blocks that are already own may have lost theirs
    // by a discard.
    if (wanted != geometry.full_mask())
      PCOW_TRY(own_blocks_.make_mappable(block_offset, geometry.block_size()));
    PCOW_TRY(copy_below(block, block_offset, wanted));
    if (wanted & *lower) {
      work->copied = true;
      work->copied_bytes += static_cast<uint64_t>(std::popcount(wanted))
                            << geometry.sub_block_shift();
    } else {
      work->expanded = true;
    }
    return {};
  };
  return own_blocks_.make_own(layers_.active(), block, before, {missing}, OwnBlocks::Purpose::kData,
                              fill);
}

// Copies sub-blocks of a block from the lower layers to the block at `block_offset` of the file.
Result<void> ActiveLayer::copy_below(uint64_t block, uint64_t block_offset, uint16_t mask) const {
  return own_blocks_.copy_sub_blocks(block_offset, mask,
                                     [&](uint32_t within, char* to, uint32_t length) {
                                       return layers_.read_below(block, {}, within, to, length);
                                     });
}

Result<Extent> ActiveLayer::make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  if (auto held = mappable_extent(offset); !held || held->length) return held;
  const uint64_t block = offset >> image_.geometry.block_shift();
  PCOW_TRY(layers_.active()->ensure(block / kBlocksPerChunk));
  auto lower = layers_.confirm(layers_.below().look(block));
  if (!lower) return lower.error();

  const std::lock_guard lock(chunk_locks_.of(block));
  const FaultScene scene{Entry::unpack(layers_.active()->load(block)), lower->mask,
                         lower->nearest < layers_.own_sources_below(),
                         static_cast<uint32_t>((offset & (image_.geometry.block_size() - 1)) >>
                                               image_.geometry.sub_block_shift())};
  Result<Made> made = Made{};
  switch (plan_fault(image_.geometry, scene, hint)) {
    // Another thread has made it own since the first look.
    case FaultPlan::kMap: return mappable_extent(offset);
    case FaultPlan::kCopySubBlock: made = copy_sub_block(block, scene, work); break;
    case FaultPlan::kComplete: made = complete(block, scene, hint.ahead, work); break;
    case FaultPlan::kExpand: made = expand(block, hint.ahead, work); break;
  }
  if (!made) return made.error();
  // Only what was made here, and not its neighbours: these are mapped already, or cause faults of
  // their own.
  Extent extent = held_extent(offset);
  const uint64_t end = std::min(made->to, extent.offset + extent.length);
  if (extent.offset < made->from) {
    extent.file_offset += made->from - extent.offset;
    extent.offset = made->from;
  }
  extent.length = end - extent.offset;
  return extent;
}

// For this function and the next three the caller holds the chunk's lock, and has ensured the
// table's page.
Result<ActiveLayer::Made> ActiveLayer::copy_sub_block(uint64_t block, const FaultScene& scene,
                                                      FaultWork* work) {
  const auto mask = static_cast<uint16_t>(1u << scene.number);
  const auto owned = own_blocks_.make_own(
      layers_.active(), block, scene.entry, {mask}, OwnBlocks::Purpose::kData,
      [&](uint64_t block_offset) { return copy_below(block, block_offset, mask); });
  if (!owned) return owned.error();
  work->copied = true;
  work->copied_bytes += image_.geometry.sub_block_size();
  const uint64_t from = (block << image_.geometry.block_shift()) +
                        (uint64_t{scene.number} << image_.geometry.sub_block_shift());
  return Made{from, from + image_.geometry.sub_block_size()};
}

// Completes the block, and, if lower layers hold something of it, followers in the chunk that lower
// layers hold as a whole. They are fewer than fit into `ahead` bytes, because each costs a copy.
Result<ActiveLayer::Made> ActiveLayer::complete(uint64_t block, const FaultScene& scene,
                                                uint64_t ahead, FaultWork* work) {
  if (auto completed = complete_block(block, scene.entry, work); !completed)
    return completed.error();
  const uint64_t from = block << image_.geometry.block_shift();
  uint64_t next = block + 1;
  const auto made = [&] { return Made{from, next << image_.geometry.block_shift()}; };
  if (!(scene.below & ~scene.entry.written)) return made();
  const uint64_t limit =
      std::min({(block / kBlocksPerChunk + 1) * kBlocksPerChunk, layers_.active()->entries(),
                block + 1 + (ahead >> image_.geometry.block_shift()) / kCopiesAheadShare});
  for (; next < limit; next++) {
    const Entry entry = Entry::unpack(layers_.active()->load(next));
    auto lower = layers_.mask_below(next);
    if (!lower) return lower.error();
    if (!entry.empty() || *lower != image_.geometry.full_mask()) break;
    auto completed = complete_block(next, entry, work);
    // The requested block is complete. A full disk, or remote bytes, must not make its writer wait
    // for followers, and a damaged follower must not make it fail.
    if (!completed &&
        (completed.error().code == Code::kNoSpace || completed.error().code == Code::kRemote ||
         completed.error().code == Code::kCorrupt))
      break;
    if (!completed) return completed.error();
  }
  return made();
}

// Allocates the block, and as many followers in the chunk as are empty in all layers and fit into
// `ahead` bytes, in one step. A run that would cross a multiple of kLargestRun ends there, so that
// the next one is whole: if it is aligned in the image, in the file and in memory, it can be one
// huge page.
Result<ActiveLayer::Made> ActiveLayer::expand(uint64_t block, uint64_t ahead, FaultWork* work) {
  const uint64_t whole = std::max<uint64_t>(kLargestRun >> image_.geometry.block_shift(), 1);
  uint64_t limit = block + 1 + (ahead >> image_.geometry.block_shift());
  if (limit / whole > block / whole) limit = std::max(limit / whole * whole, block + 1);
  limit = std::min(
      {(block / kBlocksPerChunk + 1) * kBlocksPerChunk, layers_.active()->entries(), limit});
  uint64_t end = block + 1;
  while (end < limit && !layers_.active()->load(end)) {
    auto lower = layers_.mask_below(end);
    if (!lower || *lower) break;
    end++;
  }
  auto count = own_blocks_.make_own_run(layers_.active(), block, end - block);
  if (!count) return count.error();
  work->expanded = true;
  return Made{block << image_.geometry.block_shift(), (block + *count)
                                                          << image_.geometry.block_shift()};
}

Result<Extent> Image::make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<Extent> {
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
    if (state.layers.is_stale()) return state.stale_error();
    state.durability.note_lent();
    return state.active_layer.make_writable(offset, hint, work);
  };
  return state.failures.noted(state.layers.while_stale(attempt));
}

Result<void> ActiveLayer::allocate_ahead(uint64_t offset, uint64_t length) {
  const Geometry& geometry = image_.geometry;
  const uint64_t block = offset >> geometry.block_shift();
  if (block >= layers_.active()->entries()) return {};
  PCOW_TRY(layers_.active()->ensure(block / kBlocksPerChunk));
  auto lower = layers_.mask_below(block);
  if (!lower) return lower.error();
  const std::lock_guard storing(chunk_locks_.of(block));
  if (*lower || layers_.active()->load(block)) return {};
  FaultWork ignored;
  auto made = expand(block, length - std::min<uint64_t>(length, geometry.block_size()), &ignored);
  return made ? Result<void>() : made.error();
}

Result<void> Image::allocate_ahead(uint64_t offset, uint64_t length) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
    if (state.layers.is_stale()) return state.stale_error();
    return state.active_layer.allocate_ahead(offset, length);
  };
  return state.layers.while_stale(
      attempt);  // not noted: no caller needed this yet, and a fault that does gets the error
}

Result<void> ActiveLayer::complete_chunk(uint64_t offset, FaultWork* work) {
  const uint64_t chunk = (offset >> image_.geometry.block_shift()) / kBlocksPerChunk;
  PCOW_TRY(layers_.active()->ensure(chunk));
  const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, layers_.active()->entries());
  for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
    const std::lock_guard storing(chunk_locks_.of(block));
    const Entry entry = Entry::unpack(layers_.active()->load(block));
    if (entry.index && entry.written == image_.geometry.full_mask()) continue;
    auto completed = complete_block(block, entry, work);
    if (!completed) return completed.error();
  }
  return {};
}

Result<void> Image::complete_chunk(uint64_t offset, FaultWork* work) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
    if (state.layers.is_stale()) return state.stale_error();
    return state.active_layer.complete_chunk(offset, work);
  };
  return state.failures.noted(state.layers.while_stale(attempt));
}

}  // namespace pcow
