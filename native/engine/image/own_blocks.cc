#include "engine/image/own_blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace pcow {
namespace {

constexpr uint64_t kNear = 16;  // blocks in each direction

// kLargestRun zeros; null if there is no address space for them. Nothing is ever written there, so
// each page is the kernel's single page of zeros, and reading all of it reads that page repeatedly
// from the processor's cache.
const char* zeros() {
  static void* const made =
      mmap(nullptr, kLargestRun, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return made == MAP_FAILED ? nullptr : static_cast<const char*>(made);
}

}  // namespace

// A free block. `coming`: how many blocks the caller will take from this one on.
//
// Usually one of the nearest blocks has a window with room for this one. To look at all blocks of
// the chunk takes as long as a quarter of a fault's other work in the engine.
Result<uint32_t> OwnBlocks::allocate_block(const Table& table, uint64_t block, uint64_t coming) {
  const uint64_t first = block / kBlocksPerChunk * kBlocksPerChunk;
  const uint64_t count = std::min<uint64_t>(kBlocksPerChunk, table.entries() - first);
  const Table::Chunk chunk = table.chunk(block / kBlocksPerChunk);
  const auto index_of = [&](uint64_t position) -> uint64_t {  // position -1: there is none
    return position < count ? Entry::unpack(chunk.load(position)).index : 0;
  };
  Space::Wish wish;
  wish.image_blocks = table.entries();
  wish.position = block - first;
  wish.coming = coming;
  const auto place_beside = [&](uint64_t other) {
    return Space::place_in_window(wish, index_of(other), other);
  };
  for (uint64_t distance = 1; distance <= kNear && !wish.in_window; distance++) {
    wish.in_window = place_beside(wish.position - distance);
    if (!wish.in_window) wish.in_window = place_beside(wish.position + distance);
  }
  if (wish.in_window && space_->take_block(wish.in_window))
    return static_cast<uint32_t>(wish.in_window);

  wish.own = coming;
  uint64_t nearest = kBlocksPerChunk;  // the distance of the block from which `in_window` is
  for (uint64_t other = 0; other < count; other++) {
    const uint64_t index = Entry::unpack(chunk.load(other)).index;
    wish.own += index != 0;
    const uint64_t place = Space::place_in_window(wish, index, other);
    const uint64_t distance = std::max(other, wish.position) - std::min(other, wish.position);
    if (!place || distance >= nearest) continue;
    nearest = distance;
    wish.in_window = place;
  }
  wish.sequence = coming;
  uint64_t before = block;
  while (before > 0 && wish.sequence < kBlocksPerChunk &&
         Entry::unpack(table.load(before - 1)).index) {
    before--;
    wish.sequence++;
  }
  if (before < block)
    wish.next = Entry::unpack(table.load(block - 1)).index + 1;
  else if (const uint64_t behind = index_of(wish.position + 1))
    wish.next = behind - 1;
  return space_->allocate_block(wish);
}

Result<uint32_t> OwnBlocks::take_block(const Table& table, uint64_t block, const Entry& before,
                                       Purpose purpose, uint64_t coming) {
  if (purpose == Purpose::kData) PCOW_TRY(space_->keep_reserve());
  auto index = allocate_block(table, block, coming);
  if (!index || !before.written || space_->is_durable(*index) || !keeps(Rule::kZerosBeforeEntry))
    return index;
  if (auto synced = image_.file->sync(); !synced) {
    space_->release(*index, 1);
    return synced.error();
  }
  return index;
}

void OwnBlocks::make_zero(Table* table, uint64_t block, const Entry& before,
                          uint16_t gained) const {
  const auto held = static_cast<uint16_t>(before.written | gained);
  table->store(block, {0, held, static_cast<uint16_t>(before.durable | gained)});
}

Result<void> OwnBlocks::make_mappable(uint64_t offset, uint64_t length) const {
  return keeps(Rule::kDataSpaceBeforeMapping) ? image_.file->allocate(offset, length)
                                              : Result<void>();
}

Result<bool> OwnBlocks::copy_again(uint64_t from, uint64_t to, uint16_t mask) const {
  const uint32_t sub = image_.geometry.sub_block_size();
  bool any = false;
  const auto compared = [&](uint32_t within, uint32_t length) -> Result<void> {
    const auto now = std::make_unique_for_overwrite<char[]>(length);
    const auto copy = std::make_unique_for_overwrite<char[]>(length);
    PCOW_TRY(image_.file->read_all(from + within, now.get(), length));
    PCOW_TRY(image_.file->read_all(to + within, copy.get(), length));
    for (uint32_t at = 0; at < length; at += sub) {
      if (memcmp(now.get() + at, copy.get() + at, sub) == 0) continue;
      any = true;
      PCOW_TRY(image_.file->write(to + within + at, now.get() + at, sub));
    }
    return {};
  };
  PCOW_TRY(image_.geometry.each_run(mask, compared));
  return any;
}

void OwnBlocks::name_moved(Table* table, uint64_t block, const Entry& before, uint32_t index) {
  const uint16_t full = image_.geometry.full_mask();
  table->store(block, {index, full, full});
  if (before.index) space_->release(before.index, 1);
}

// Puts neighbouring blocks that read as zeros, and have disk space, into the page cache as large
// folios of zeros. A single page that a fault brings in costs the kernel several times as much, and
// becomes a folio of its own.
Result<void> OwnBlocks::fill_cache(uint64_t index, uint64_t count) const {
  const uint64_t begin = index << image_.geometry.block_shift();
  const uint64_t end = begin + (count << image_.geometry.block_shift());
  for (uint64_t at = begin; zeros() && at < end;) {
    const uint64_t next = std::min(end, at / kLargestRun * kLargestRun + kLargestRun);
    PCOW_TRY(image_.file->write(at, zeros(), next - at));
    at = next;
  }
  return {};
}

// The five steps of make_own() for a run: blocks [block, block + most) of one chunk of the active
// layer, whose table is `table`. They are empty in every layer of the chain, so none of them has
// `durable` bits, and their data is what a free block reads as. They get disk space. The run ends
// early if there is no space for all of it, or no neighbouring block. Returns how many became own:
// at least one.
Result<uint64_t> OwnBlocks::make_own_run(const std::shared_ptr<Table>& table, uint64_t block,
                                         uint64_t most) {
  auto first = take_block(*table, block, {}, Purpose::kData, most);
  if (!first) return first.error();
  uint64_t count = 1;
  while (count < most && space_->take_block(*first + count)) count++;
  const uint64_t offset = uint64_t{*first} << image_.geometry.block_shift();
  auto outcome = make_mappable(offset, count << image_.geometry.block_shift());
  if (!outcome && count > 1) {
    // There is no space for the run: allocate only the block that is needed.
    space_->release(uint64_t{*first} + 1, count - 1);
    count = 1;
    outcome = make_mappable(offset, image_.geometry.block_size());
  }
  // Persistent memory has no page cache.
  const bool cached = !image_.file->is_persistent();
  if (outcome && count > 1 && cached) outcome = fill_cache(*first, count);
  if (!outcome) {
    space_->release(*first, count);
    return outcome.error();
  }
  const uint16_t full = image_.geometry.full_mask();
  table->store_run(block, count, {*first, full, cached ? uint16_t{0} : full});
  if (cached) durability_.mark(table, block / kBlocksPerChunk);
  return count;
}

}  // namespace pcow
