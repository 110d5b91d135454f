// Sizes that follow from the block size, and the limits of the format (docs/format.md, "Limits").
#pragma once

#include <bit>
#include <cstdint>

#include "engine/disk/page.h"
#include "engine/error.h"
#include "engine/format/bytes.h"

namespace pcow {

inline constexpr uint32_t kMinBlockShift = 12;
inline constexpr uint32_t kMaxBlockShift = 21;
inline constexpr uint32_t kDefaultBlockSize = 65536;
inline constexpr uint64_t kMinImageSize = uint64_t{64} << 10;
inline constexpr uint64_t kMaxImageSize = uint64_t{64} << 40;
inline constexpr uint64_t kMaxBlockIndex = (uint64_t{1} << 30) - 1;
// Of an image; also of a chain of bases.
inline constexpr uint32_t kMaxLayers = 65535;
inline constexpr uint32_t kMaxChainLayers = 2 * kMaxLayers;  // an image's own and its bases'
inline constexpr uint32_t kMaxSubBlocks = 16;
inline constexpr uint32_t kMaxNameLength = 255;
inline constexpr uint32_t kMaxBasePathLength = 2048;
inline constexpr uint32_t kMaxChainImages = 256;
inline constexpr uint32_t kBlocksPerChunk = kPageSize / 8;  // one page of a table

class Geometry {
 public:
  explicit constexpr Geometry(uint32_t block_shift) : block_shift_(block_shift) {}

  constexpr uint32_t block_shift() const { return block_shift_; }
  constexpr uint32_t block_size() const { return uint32_t{1} << block_shift_; }
  // A sixteenth of a block, but at least a page.
  constexpr uint32_t sub_block_shift() const {
    return block_shift_ - 4 < 12 ? 12 : block_shift_ - 4;
  }
  constexpr uint32_t sub_block_size() const { return uint32_t{1} << sub_block_shift(); }
  constexpr uint32_t sub_blocks() const {
    return uint32_t{1} << (block_shift_ - sub_block_shift());
  }
  // The mask of all sub-blocks of a block.
  constexpr uint16_t full_mask() const {
    return static_cast<uint16_t>((uint32_t{1} << sub_blocks()) - 1);
  }

  constexpr uint64_t blocks_for(uint64_t bytes) const {
    return (bytes + block_size() - 1) >> block_shift_;
  }
  constexpr uint64_t chunks_for(uint64_t bytes) const {
    return (blocks_for(bytes) + kBlocksPerChunk - 1) / kBlocksPerChunk;
  }
  // Bytes that the table of a layer of this size takes in the file: whole blocks.
  constexpr uint64_t table_length(uint64_t bytes) const {
    return round_up<uint64_t>(blocks_for(bytes) * 8, block_size());
  }
  // File blocks that the two superblock slots take, at the start of the file.
  constexpr uint64_t superblock_blocks() const { return blocks_for(2 * kPageSize); }
  // The largest image whose blocks a 30-bit index can address.
  constexpr uint64_t max_image_size() const {
    const uint64_t addressable = (kMaxBlockIndex + 1) << block_shift_;
    return addressable < kMaxImageSize ? addressable : kMaxImageSize;
  }

  // The mask of the sub-blocks that bytes [from, to) of a block touch; 0 <= from < to <=
  // block_size().
  constexpr uint16_t touched_mask(uint32_t from, uint32_t to) const {
    const uint32_t first = from >> sub_block_shift();
    const uint32_t last = (to - 1) >> sub_block_shift();
    return static_cast<uint16_t>(((uint32_t{2} << last) - 1) & ~((uint32_t{1} << first) - 1));
  }
  // Calls `visit(within, length)` for each run of sub-blocks in `mask`: offset in the block, and
  // length, in bytes. Stops at the first error.
  template <typename Visit>
  Result<void> each_run(uint16_t mask, const Visit& visit) const {
    for (uint32_t left = mask; left;) {
      const auto first = static_cast<uint32_t>(std::countr_zero(left));
      const auto count = static_cast<uint32_t>(std::countr_one(left >> first));
      PCOW_TRY(visit(first << sub_block_shift(), count << sub_block_shift()));
      left &= ~(((uint32_t{1} << count) - 1) << first);
    }
    return {};
  }

 private:
  uint32_t block_shift_;
};

}  // namespace pcow
