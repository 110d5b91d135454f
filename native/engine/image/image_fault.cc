// What a monitor's page fault needs: own blocks of the active layer, with disk space behind them, to map into memory.
//
// The order is that of a write (image_io.cc): page of the table, block, data, entry, mark. What comes on top is that nothing
// is mapped that has no disk space, because it was written (a copy) or allocated: a store of the guest must never find the
// disk full, for that is SIGBUS.
// Only whole sub-blocks that are `written` are mapped, so a sync that takes down the bits covers the guest's stores too:
// the kernel writes dirty pages of the mapping back by the same fdatasync.

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <shared_mutex>

#include "engine/image/image_state.h"
#include "engine/rules.h"

namespace pcow {
namespace {

constexpr uint64_t kCopiesAheadShare = 4;  // of what would be allocated ahead where nothing must be copied

// A copy passes through here: not zeroed, for all of it is read into. Not a buffer of the thread's own that is kept: a file's
// observer (file.h) may come back to the engine in the middle of a write.
std::unique_ptr<char[]> scratch(size_t length) { return std::make_unique_for_overwrite<char[]>(length); }

// kLargestRun bytes; null where there is no address space. Never written, so each of its pages is the kernel's one page of zeros:
// to read all of it is to read that page again and again, from the processor's cache.
const char* zeros() {
  static void* const made = mmap(nullptr, kLargestRun, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return made == MAP_FAILED ? nullptr : static_cast<const char*>(made);
}

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
  if (extent.length && writable() && keeps(Rule::kDataSpaceBeforeMapping))
    PCOW_TRY(file->allocate(extent.place, extent.length));
  return extent;
}

Result<Extent> Image::held(uint64_t offset) const {
  const ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  if (state.closed) return state.closed_error();
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
Result<Entry> ImageState::complete_block(uint64_t block, Entry entry, FaultWork* work) {
  const bool fresh = entry.index == 0;
  const Entry before = entry;
  if (fresh) {
    auto index = take_block(*active, block, before);
    if (!index) return index.error();
    entry.index = *index;
  }
  const uint64_t place = uint64_t{entry.index} << geometry.block_shift();
  const auto fill = [&]() -> Result<void> {
    if (!keeps(Rule::kDataBeforeEntry)) active->store(block, {entry.index, geometry.full_mask(), entry.durable});
    auto lower = mask_below(block);
    if (!lower) return lower.error();
    const auto missing = static_cast<uint16_t>(geometry.full_mask() & ~before.written);
    // In a fresh block only what lies below must be written; in an old one the other sub-blocks too, for an unfinished
    // write may have left something in them.
    const auto wanted = static_cast<uint16_t>(fresh ? missing & *lower : missing);
    // What is written has its disk space by that; what is our own already may have lost it by a discard.
    if (wanted != geometry.full_mask() && keeps(Rule::kDataSpaceBeforeMapping))
      PCOW_TRY(file->allocate(place, geometry.block_size()));
    for (uint32_t first = 0; first < geometry.sub_blocks(); first++) {
      if (!(wanted >> first & 1)) continue;
      uint32_t end = first + 1;
      while (end < geometry.sub_blocks() && (wanted >> end & 1)) end++;
      const uint64_t within = uint64_t{first} << geometry.sub_block_shift();
      const size_t length = size_t{end - first} << geometry.sub_block_shift();
      const auto buffer = scratch(length);
      PCOW_TRY(read_below(block, {}, static_cast<uint32_t>(within), buffer.get(), length));
      PCOW_TRY(file->write(place + within, buffer.get(), length));
      first = end;
    }
    if (wanted & *lower) {
      work->copied = true;
      work->copied_bytes += static_cast<uint64_t>(std::popcount(wanted)) << geometry.sub_block_shift();
    } else {
      work->expanded = true;
    }
    return {};
  };
  if (auto filled = fill(); !filled) {
    if (fresh) space->release(entry.index, 1);
    return filled.error();
  }
  entry.written = geometry.full_mask();
  active->store(block, entry);
  mark_unsynced(active, block / kBlocksPerChunk);
  return entry;
}

Result<Extent> ImageState::make_writable_locked(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  if (auto held = mappable_extent(offset); !held || held->length) return held;
  const uint64_t block = offset >> geometry.block_shift();
  const uint64_t chunk = block / kBlocksPerChunk;
  PCOW_TRY(active->ensure(chunk));
  auto lower = mask_below(block);
  if (!lower) return lower.error();

  std::unique_lock lock(chunk_lock(block));
  Entry entry = Entry::unpack(active->load(block));
  const bool copies = (*lower & ~entry.written) != 0;
  // One sub-block at a time as long as writes are scattered: what is copied takes disk space. The rest of the block follows
  // where writes come one after another; over a base, where half of it is our own already; over a snapshot of our own, at the
  // second write, for what was in use when it was taken is in use now, and comes back sooner in whole blocks.
  const int own = std::popcount(entry.written);
  bool scattered = hint.ahead == 0 && !hint.whole_block && own < static_cast<int>(geometry.sub_blocks() / 2);
  if (copies && scattered && own > 0) {
    auto snapshot = confirm(below->holds(block, below->sources().size() - base_sources.size()));
    if (!snapshot) return snapshot.error();
    scattered = !*snapshot;
  }
  // What is made here, and no more of its neighbours: they have been mapped, or have a fault of their own.
  uint64_t from = block << geometry.block_shift();
  uint64_t to = from + geometry.block_size();
  const auto number = static_cast<uint32_t>((offset & (geometry.block_size() - 1)) >> geometry.sub_block_shift());
  if (copies && scattered && (entry.empty() || entry.index) && (*lower >> number & 1)) {
    const bool fresh = entry.index == 0;
    if (fresh) {
      auto index = take_block(*active, block, entry);
      if (!index) return index.error();
      entry.index = *index;
    }
    const uint32_t within = number << geometry.sub_block_shift();
    const uint64_t place = (uint64_t{entry.index} << geometry.block_shift()) + within;
    const auto buffer = scratch(geometry.sub_block_size());
    auto outcome = read_below(block, {}, within, buffer.get(), geometry.sub_block_size());
    if (outcome) outcome = file->write(place, buffer.get(), geometry.sub_block_size());
    if (!outcome) {
      if (fresh) space->release(entry.index, 1);
      return outcome.error();
    }
    entry.written |= static_cast<uint16_t>(1u << number);
    active->store(block, entry);
    mark_unsynced(active, chunk);
    work->copied = true;
    work->copied_bytes += geometry.sub_block_size();
    from += within;
    to = from + geometry.sub_block_size();
  } else if (copies || !entry.empty()) {
    auto completed = complete_block(block, entry, work);
    if (!completed) return completed.error();
    if (copies) PCOW_TRY(copy_ahead(block, hint.ahead, &to, work));
  } else {
    PCOW_TRY(expand(block, hint.ahead, &to));
    work->expanded = true;
  }
  Extent extent = held_extent(offset);
  const uint64_t end = std::min(to, extent.offset + extent.length);
  if (extent.offset < from) {
    extent.place += from - extent.offset;
    extent.offset = from;
  }
  extent.length = end - extent.offset;
  return extent;
}

// With the chunk's lock held, and the table's page ensured: completes followers of `block` in the chunk that lie below
// as well. Not as many as `ahead` bytes hold, for each costs a copy. `*to` becomes the end of what is complete, in the image.
Result<void> ImageState::copy_ahead(uint64_t block, uint64_t ahead, uint64_t* to, FaultWork* work) {
  const uint64_t limit = std::min({(block / kBlocksPerChunk + 1) * kBlocksPerChunk, active->entries(),
                                   block + 1 + (ahead >> geometry.block_shift()) / kCopiesAheadShare});
  for (uint64_t next = block + 1; next < limit; next++) {
    const Entry entry = Entry::unpack(active->load(next));
    auto lower = mask_below(next);
    if (!lower) return lower.error();
    if (!entry.empty() || *lower != geometry.full_mask()) break;
    auto completed = complete_block(next, entry, work);
    // The one that is needed is there: a full disk is no reason to make its writer wait, and a damaged neighbour none to fail.
    if (!completed && (completed.error().code == Code::kNoSpace || completed.error().code == Code::kCorrupt)) return {};
    if (!completed) return completed.error();
    *to += geometry.block_size();
  }
  return {};
}

// Neighbouring blocks that read as zeros, and whose space is allocated, come into the page cache as zeros of large folios. A page
// that a fault brings in by itself costs the kernel several times as much, and a folio of its own.
Result<void> ImageState::fill_cache(uint64_t index, uint64_t count) {
  const uint64_t place = index << geometry.block_shift();
  const uint64_t end = place + (count << geometry.block_shift());
  for (uint64_t at = place; zeros() && at < end;) {
    const uint64_t next = std::min(end, at / kLargestRun * kLargestRun + kLargestRun);
    PCOW_TRY(file->write(at, zeros(), next - at));
    at = next;
  }
  return {};
}

// With the chunk's lock held, and the table's page ensured: allocates `block`, and as many of its followers in the chunk
// as are empty all the way down and as `ahead` bytes hold, in one go. A run that would pass a multiple of kLargestRun ends there,
// so that the next one is a whole one: aligned in the image, in the file and in memory, it can be one huge page. `*to` becomes the
// end of the run, in the image.
Result<void> ImageState::expand(uint64_t block, uint64_t ahead, uint64_t* to) {
  const uint64_t whole = std::max<uint64_t>(kLargestRun >> geometry.block_shift(), 1);
  uint64_t limit = block + 1 + (ahead >> geometry.block_shift());
  if (limit / whole > block / whole) limit = std::max(limit / whole * whole, block + 1);
  limit = std::min({(block / kBlocksPerChunk + 1) * kBlocksPerChunk, active->entries(), limit});
  std::vector<uint32_t> places;
  Result<void> outcome;
  for (uint64_t next = block; next < limit && outcome; next++) {
    if (next > block) {
      if (active->load(next)) break;
      auto lower = mask_below(next);
      if (!lower || *lower) break;
    }
    // Neighbours only: the first one finds its place by the chunk, the others follow it.
    auto index = places.empty() ? take_block(*active, next, {})
                                : space->allocate_block(uint64_t{places.back()} + 1, 0, kBlocksPerChunk);
    if (!index) {
      if (places.empty()) outcome = index.error();
      break;
    }
    if (!places.empty() && *index != places.back() + 1) {
      space->release(*index, 1);
      break;
    }
    places.push_back(*index);
  }
  if (outcome) {
    const uint64_t place = uint64_t{places.front()} << geometry.block_shift();
    outcome = file->allocate(place, uint64_t{places.size()} << geometry.block_shift());
    if (!outcome && places.size() > 1) {
      // No space for the run: just for the one that is needed.
      for (size_t i = 1; i < places.size(); i++) space->release(places[i], 1);
      places.erase(places.begin() + 1, places.end());
      outcome = file->allocate(place, geometry.block_size());
    }
  }
  if (outcome && places.size() > 1) outcome = fill_cache(places.front(), places.size());
  if (!outcome) {
    for (const uint32_t index : places) space->release(index, 1);
    return outcome;
  }
  for (size_t i = 0; i < places.size(); i++) active->store(block + i, {places[i], geometry.full_mask(), 0});
  mark_unsynced(active, block / kBlocksPerChunk);
  *to = (block + places.size()) << geometry.block_shift();
  return {};
}

Result<Extent> Image::make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<Extent> {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
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
    uint64_t to;
    return state.expand(block, length - std::min<uint64_t>(length, state.geometry.block_size()), &to);
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
