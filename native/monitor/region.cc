#include "monitor/region.h"

namespace pcow {

uint64_t Region::most_fragmented(int64_t* boundaries) const {
  *boundaries = 0;
  uint64_t chunk = 0;
  for (const auto& [number, state] : chunks_) {
    if (state.boundaries <= *boundaries) continue;
    *boundaries = state.boundaries;
    chunk = number;
  }
  return chunk << geometry_.chunk_shift;
}

std::vector<uint64_t> Region::chunk_starts() const {
  std::vector<uint64_t> starts;
  starts.reserve(chunks_.size());
  for (const auto& item : chunks_) starts.push_back(item.first << geometry_.chunk_shift);
  return starts;
}

void Region::remember_use(uint64_t offset) {
  const Chunk* chunk = find(offset);
  if (!chunk) return;
  auto& used = used_[offset >> geometry_.chunk_shift];
  for (size_t word = 0; word < chunk->mapped.size(); word++) {
    for (uint64_t bits = chunk->mapped[word] | chunk->clean[word] | chunk->shared[word]; bits;
         bits &= bits - 1) {
      const uint64_t sub_block = word * 64 + static_cast<uint64_t>(std::countr_zero(bits));
      used.set(geometry_.block_in_chunk(sub_block << geometry_.sub_block_shift));
    }
  }
}

bool Region::was_in_use(uint64_t offset) const {
  const auto used = used_.find(offset >> geometry_.chunk_shift);
  return used != used_.end() && used->second.test(geometry_.block_in_chunk(offset));
}

}  // namespace pcow
