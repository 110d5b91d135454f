// One mapping of a flat file in this process: which of its pages are the image's own blocks, which are clean copies, and
// which are still missing. Guarded by its session's `handling`.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace pcow {

// Sizes of the image that a region needs, in powers of two of bytes.
struct RegionGeometry {
  uint32_t sub_block_shift;
  uint32_t chunk_shift;
  uint64_t sub_block_size() const { return uint64_t{1} << sub_block_shift; }
  uint64_t chunk_size() const { return uint64_t{1} << chunk_shift; }
};

class Region {
 public:
  Region(const RegionGeometry& geometry, char* address, size_t length, uint64_t offset, int protection)
      : geometry_(geometry), address_(address), length_(length), offset_(offset), protection_(protection) {}

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

  // A state of each sub-block, by any offset in it.
  bool is_mapped(uint64_t offset) const { return get(offset, &Chunk::mapped); }
  bool is_clean(uint64_t offset) const { return get(offset, &Chunk::clean); }
  void set_mapped(uint64_t offset) { set(offset, &Chunk::mapped, true); }
  void set_clean(uint64_t offset, bool clean) { set(offset, &Chunk::clean, clean); }

  // How many boundaries between mappings lie in the chunk at `offset` (an upper estimate).
  int64_t& boundaries(uint64_t offset) { return chunks_[offset >> geometry_.chunk_shift].boundaries; }
  // The start of the chunk with the most boundaries, and how many; 0 where there is none.
  uint64_t most_fragmented(int64_t* boundaries) const;
  // Of the chunks that may have something in them, in no order.
  std::vector<uint64_t> chunk_starts() const;
  // Forgets the chunks that bytes [from, to) of the image touch, each after `visit(from, to, boundaries)` with its range.
  template <typename Visit>
  void take_down(uint64_t from, uint64_t to, const Visit& visit) {
    const uint64_t low = from >> geometry_.chunk_shift;
    const uint64_t high = (to + geometry_.chunk_size() - 1) >> geometry_.chunk_shift;
    for (auto at = chunks_.begin(); at != chunks_.end();) {
      const auto& [number, chunk] = *at;
      if (number < low || number >= high) {
        ++at;
        continue;
      }
      const uint64_t start = number << geometry_.chunk_shift;
      visit(std::max(start, offset_), std::min(start + geometry_.chunk_size(), end()), chunk.boundaries);
      at = chunks_.erase(at);
    }
  }

  // Bytes to allocate beyond a first touch at `offset`: doubles while touches follow one another.
  uint64_t ahead(uint64_t offset);
  void expanded_to(uint64_t end) { expected_ = end; }

 private:
  static constexpr size_t kSubBlocksPerChunk = 8192;
  using Bits = std::array<uint64_t, kSubBlocksPerChunk / 64>;
  struct Chunk {
    Bits mapped{};
    Bits clean{};
    int64_t boundaries = 0;
  };

  bool get(uint64_t offset, Bits Chunk::*bits) const {
    const auto found = chunks_.find(offset >> geometry_.chunk_shift);
    if (found == chunks_.end()) return false;
    const uint64_t number = (offset & (geometry_.chunk_size() - 1)) >> geometry_.sub_block_shift;
    return (found->second.*bits)[number / 64] >> (number % 64) & 1;
  }
  void set(uint64_t offset, Bits Chunk::*bits, bool value) {
    const uint64_t number = (offset & (geometry_.chunk_size() - 1)) >> geometry_.sub_block_shift;
    uint64_t& word = (chunks_[offset >> geometry_.chunk_shift].*bits)[number / 64];
    word = value ? word | uint64_t{1} << (number % 64) : word & ~(uint64_t{1} << (number % 64));
  }

  const RegionGeometry geometry_;
  char* const address_;
  const size_t length_;
  const uint64_t offset_;
  const int protection_;
  std::unordered_map<uint64_t, Chunk> chunks_;
  uint64_t expected_ = ~uint64_t{0};  // where the next touch of a sequential writer would be
  uint64_t ahead_ = 0;
};

}  // namespace pcow
