#include "engine/disk/block_set.h"

#include <algorithm>
#include <bit>

namespace pcow {

void BlockSet::set(uint64_t first, uint64_t count, bool member) {
  for (uint64_t block = first; block < first + count;) {
    const uint64_t at = block / 64;
    const uint64_t leaf = at / kLeafWords;
    if (leaf >= leaves_.size()) leaves_.resize(leaf + 1);
    if (!leaves_[leaf]) leaves_[leaf] = std::make_unique<Leaf>();
    const uint64_t bits = std::min<uint64_t>(64 - block % 64, first + count - block);
    const uint64_t mask = (bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1) << (block % 64);
    uint64_t& word = (*leaves_[leaf])[at % kLeafWords];
    size_ -= static_cast<uint64_t>(std::popcount(word & mask));
    word = member ? word | mask : word & ~mask;
    size_ += static_cast<uint64_t>(std::popcount(word & mask));
    block += bits;
  }
}

uint64_t BlockSet::next(bool member, uint64_t from, uint64_t end) const {
  while (from < end) {
    const uint64_t bits = (member ? word(from / 64) : ~word(from / 64)) >> (from % 64);
    if (bits) return std::min(from + static_cast<uint64_t>(std::countr_zero(bits)), end);
    from = (from / 64 + 1) * 64;
  }
  return end;
}

uint64_t BlockSet::end() const {
  for (uint64_t leaf = leaves_.size(); leaf-- > 0;) {
    if (!leaves_[leaf]) continue;
    for (uint64_t at = kLeafWords; at-- > 0;)
      if (const uint64_t bits = (*leaves_[leaf])[at])
        return (leaf * kLeafWords + at) * 64 + static_cast<uint64_t>(std::bit_width(bits));
  }
  return 0;
}

}  // namespace pcow
