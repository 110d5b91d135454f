#include "engine/image/own_blocks.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

namespace pcow {
namespace {

// kLargestRun zeros; null if there is no address space for them. Nothing is ever written there, so
// each page is the kernel's single page of zeros, and reading all of it reads that page repeatedly
// from the processor's cache.
const char* zeros() {
  static void* const made =
      mmap(nullptr, kLargestRun, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return made == MAP_FAILED ? nullptr : static_cast<const char*>(made);
}

}  // namespace

// A free block, if possible next to the blocks of its neighbours in the chunk.
Result<uint32_t> OwnBlocks::allocate_block(const Table& table, uint64_t block) {
  const uint64_t chunk_start = block / kBlocksPerChunk * kBlocksPerChunk;
  const uint64_t chunk_end = std::min<uint64_t>(chunk_start + kBlocksPerChunk, table.entries());
  uint64_t near = 0;
  for (uint64_t distance = 1; distance < kBlocksPerChunk && !near; distance++) {
    if (block >= chunk_start + distance) {
      if (const uint64_t index = Entry::unpack(table.load(block - distance)).index)
        near = index + distance;
    }
    if (!near && block + distance < chunk_end) {
      const uint64_t index = Entry::unpack(table.load(block + distance)).index;
      if (index > distance) near = index - distance;
    }
  }
  return space_->allocate_block(
      near, static_cast<uint32_t>(block - chunk_start),
      static_cast<uint32_t>(std::min<uint64_t>(kBlocksPerChunk, table.entries())));
}

// Steps 1 and 2. A caller that does not store an entry for the block releases it.
Result<uint32_t> OwnBlocks::take_block(const Table& table, uint64_t block, const Entry& before,
                                       Purpose purpose) {
  if (purpose == Purpose::kData) PCOW_TRY(space_->keep_reserve());
  auto index = allocate_block(table, block);
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
  auto first = take_block(*table, block, {}, Purpose::kData);
  if (!first) return first.error();
  uint64_t count = 1;
  for (; count < most; count++) {
    auto next = space_->allocate_block(*first + count, 0, kBlocksPerChunk);
    if (!next) break;
    if (*next != *first + count) {
      space_->release(*next, 1);
      break;
    }
  }
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
