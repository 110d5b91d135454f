#include "region.h"

#include <algorithm>

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

uint64_t Region::ahead(uint64_t offset) {
  constexpr uint64_t kFirst = uint64_t{128} << 10;
  constexpr uint64_t kMost = uint64_t{2} << 20;
  if (offset == expected_) {
    ahead_ = std::clamp(ahead_ * 2, kFirst, kMost);
  } else {
    ahead_ = 0;
  }
  return ahead_;
}

}  // namespace pcow
