// One mapping of a flat file in this process. It records which sub-blocks are mappings of the
// image's own blocks, which are clean copies, which show shared memory, and which are missing.
// Guarded by its session's `handling`.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/image/image.h"
#include "monitor/streams.h"

namespace pcow {

// Sizes of the image that a region needs, in powers of two of bytes.
struct RegionGeometry {
  static constexpr size_t kBlocksPerChunk = 512;
  static constexpr size_t kSubBlocksPerChunk = 16 * kBlocksPerChunk;

  uint32_t sub_block_shift;
  uint32_t chunk_shift;
  uint64_t sub_block_size() const { return uint64_t{1} << sub_block_shift; }
  uint64_t chunk_size() const { return uint64_t{1} << chunk_shift; }
  uint64_t block_size() const { return chunk_size() / kBlocksPerChunk; }
  // The number, in its chunk, of the sub-block or block that has this offset of the image.
  size_t sub_block_in_chunk(uint64_t offset) const {
    return (offset & (chunk_size() - 1)) >> sub_block_shift;
  }
  size_t block_in_chunk(uint64_t offset) const {
    return (offset & (chunk_size() - 1)) / block_size();
  }
};

class Region {
 public:
  Region(const RegionGeometry& geometry, char* address, size_t length, uint64_t offset,
         int protection)
      : geometry_(geometry),
        address_(address),
        length_(length),
        offset_(offset),
        protection_(protection) {}

  char* address() const { return address_; }
  size_t length() const { return length_; }    // bytes
  uint64_t offset() const { return offset_; }  // of the first byte in the image
  uint64_t end() const { return offset_ + length_; }
  int protection() const { return protection_; }
  bool contains(const void* address) const {
    return address >= address_ && static_cast<const char*>(address) < address_ + length_;
  }
  char* at(uint64_t offset) const { return address_ + (offset - offset_); }
  uint64_t offset_of(const void* address) const {
    return offset_ + static_cast<uint64_t>(static_cast<const char*>(address) - address_);
  }

  // The state of a sub-block; `offset` is any offset in it.
  bool is_mapped(uint64_t offset) const { return get(offset, &Chunk::mapped); }
  bool is_clean(uint64_t offset) const { return get(offset, &Chunk::clean); }
  bool is_shared(uint64_t offset) const { return get(offset, &Chunk::shared); }
  void set_mapped(uint64_t offset, bool mapped) { set(offset, &Chunk::mapped, mapped); }
  void set_clean(uint64_t offset, bool clean) { set(offset, &Chunk::clean, clean); }
  void set_shared(uint64_t offset, bool shared) { set(offset, &Chunk::shared, shared); }

  // The number of boundaries between mappings in the chunk at `offset` (an upper estimate).
  int64_t& boundaries(uint64_t offset) { return at_or_new(offset).boundaries; }
  // The start of the chunk with the most boundaries, and their number; 0 if there is none.
  uint64_t most_fragmented(int64_t* boundaries) const;
  // The starts of all chunks that may have sub-blocks that are not missing, in no order.
  std::vector<uint64_t> chunk_starts() const;
  // Forgets the chunks that overlap bytes [from, to) of the image, each after a call of
  // `visit(mapped, clean, shared, boundaries)` with the numbers of its sub-blocks in these states.
  template <typename Visit>
  void take_down(uint64_t from, uint64_t to, const Visit& visit) {
    const uint64_t low = from >> geometry_.chunk_shift;
    const uint64_t high = (to + geometry_.chunk_size() - 1) >> geometry_.chunk_shift;
    const auto forget = [&](auto at) {
      const auto count = [](const Bits& bits) {
        uint64_t found = 0;
        for (const uint64_t word : bits) found += static_cast<uint64_t>(std::popcount(word));
        return found;
      };
      visit(count(at->second.mapped), count(at->second.clean), count(at->second.shared),
            at->second.boundaries);
      last_ = nullptr;
      return chunks_.erase(at);
    };
    if (high - low < chunks_.size()) {
      for (uint64_t number = low; number < high; number++)
        if (const auto at = chunks_.find(number); at != chunks_.end()) forget(at);
      return;
    }
    for (auto at = chunks_.begin(); at != chunks_.end();)
      at = at->first >= low && at->first < high ? forget(at) : ++at;
  }

  // Records which blocks of the chunk at `offset` are not missing now. was_in_use()
  // returns this after they have been taken down.
  void remember_use(uint64_t offset);
  void forget_use() { used_.clear(); }
  bool was_in_use(uint64_t offset) const;

  // bytes to read ahead of a sequential reader, at most
  static constexpr uint64_t kLargestRead = uint64_t{512} << 10;
  Streams& writers() { return writers_; }
  Streams& readers() { return readers_; }

 private:
  using Bits = std::array<uint64_t, RegionGeometry::kSubBlocksPerChunk / 64>;
  struct Chunk {
    Bits mapped{};
    Bits clean{};
    Bits shared{};
    int64_t boundaries = 0;
  };

  // Returns null if nothing was ever set in the chunk. Remembers the last chunk found, because a
  // fault looks at many neighbours.
  Chunk* find(uint64_t offset) const {
    const uint64_t number = offset >> geometry_.chunk_shift;
    if (!last_ || last_number_ != number) {
      const auto found = chunks_.find(number);
      last_ = found == chunks_.end() ? nullptr : &found->second;
      last_number_ = number;
    }
    return last_;
  }
  Chunk& at_or_new(uint64_t offset) {
    if (Chunk* found = find(offset)) return *found;
    return *(last_ = &chunks_[offset >> geometry_.chunk_shift]);
  }
  bool get(uint64_t offset, Bits Chunk::*bits) const {
    const Chunk* found = find(offset);
    if (!found) return false;
    const size_t number = geometry_.sub_block_in_chunk(offset);
    return (found->*bits)[number / 64] >> (number % 64) & 1;
  }
  void set(uint64_t offset, Bits Chunk::*bits, bool value) {
    const size_t number = geometry_.sub_block_in_chunk(offset);
    uint64_t& word = (at_or_new(offset).*bits)[number / 64];
    word = value ? word | uint64_t{1} << (number % 64) : word & ~(uint64_t{1} << (number % 64));
  }

  const RegionGeometry geometry_;
  char* const address_;
  const size_t length_;
  const uint64_t offset_;
  const int protection_;
  mutable std::unordered_map<uint64_t, Chunk> chunks_;
  mutable Chunk* last_ = nullptr;
  mutable uint64_t last_number_ = 0;
  // By the chunk's number.
  std::unordered_map<uint64_t, std::bitset<RegionGeometry::kBlocksPerChunk>> used_;
  Streams writers_{uint64_t{128} << 10, kLargestRun};
  Streams readers_{uint64_t{64} << 10, kLargestRead};
};

using Regions = std::vector<std::unique_ptr<Region>>;

}  // namespace pcow
