// A table entry: one atomic 64-bit word that says which block of the file a block of a layer is in,
// and which of its sub-blocks count.
//
//   bits 0–15 written | 16–31 durable | 32–61 index | 62 remote | 63 zero
//
// `written`: this layer holds these sub-blocks; reads of the others fall through to the parent.
// Index 0 with bits set: these sub-blocks are zero here. `durable`: if this entry is on the disk,
// so is what it says about these sub-blocks (docs/format.md, "After a host crash"). `remote`: this
// layer holds these sub-blocks, but their bytes are not in the file yet; the index is 0.
#pragma once

#include <cstdint>

namespace pcow {

struct Entry {
  uint32_t index = 0;
  uint16_t written = 0;
  uint16_t durable = 0;
  bool remote = false;

  static constexpr Entry unpack(uint64_t word) {
    return {static_cast<uint32_t>(word >> 32) & 0x3fffffffu, static_cast<uint16_t>(word),
            static_cast<uint16_t>(word >> 16), (word >> 62 & 1) != 0};
  }
  constexpr uint64_t pack() const {
    return (static_cast<uint64_t>(remote) << 62) | (static_cast<uint64_t>(index) << 32) |
           (static_cast<uint64_t>(durable) << 16) | written;
  }
  // The part of this entry that counts after a host crash.
  constexpr Entry as_durable() const {
    const auto kept = static_cast<uint16_t>(written & durable);
    return kept ? Entry{index, kept, kept, remote} : Entry{};
  }
  constexpr bool empty() const { return written == 0; }
  // Data, here or not: no zeros.
  constexpr bool has_data() const { return index != 0 || remote; }

  friend constexpr bool operator==(const Entry&, const Entry&) = default;
};

// False for a word that no writer stores: bit 63 set, bits beyond the block's sub-blocks, `durable`
// without `written`, or an index with nothing written; or remote, but not as a writer of a lazy
// image leaves it.
constexpr bool entry_is_sound(uint64_t word, uint16_t full_mask, bool lazy) {
  const Entry entry = Entry::unpack(word);
  const bool remote_is_sound =
      lazy && entry.index == 0 && entry.written != 0 && entry.durable == entry.written;
  return (word >> 63) == 0 && (entry.written & ~full_mask) == 0 &&
         (entry.durable & ~entry.written) == 0 && (entry.index == 0 || entry.written != 0) &&
         (!entry.remote || remote_is_sound);
}

}  // namespace pcow
