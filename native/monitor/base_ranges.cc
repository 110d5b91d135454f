#include "monitor/base_ranges.h"

namespace pcow {

bool BaseRanges::reads_as_base(uint64_t offset) {
  if (view_) return true;
  const uint64_t chunk = offset >> geometry_.chunk_shift;
  const auto known = chunks_.find(chunk);
  if (known != chunks_.end()) return !known->second[geometry_.sub_block_in_chunk(offset)];
  const uint64_t from = chunk << geometry_.chunk_shift;
  auto batch = image_->changes_to_base(nullptr, from, from + geometry_.chunk_size());
  if (!batch) return false;
  Held& held = chunks_[chunk];
  const uint64_t sub = geometry_.sub_block_size();
  for (const MapExtent& extent : batch->extents)
    for (uint64_t at = extent.offset; at < extent.offset + extent.length; at += sub)
      held.set(geometry_.sub_block_in_chunk(at));
  return !held[geometry_.sub_block_in_chunk(offset)];
}

void BaseRanges::are_held(uint64_t from, uint64_t to) {
  const auto known = chunks_.find(from >> geometry_.chunk_shift);
  if (known == chunks_.end()) return;
  const uint64_t sub = geometry_.sub_block_size();
  for (uint64_t at = from; at < to; at = at / sub * sub + sub)
    known->second.set(geometry_.sub_block_in_chunk(at));
}

void BaseRanges::look_again(uint64_t from, uint64_t to) {
  for (uint64_t chunk = from >> geometry_.chunk_shift; chunk << geometry_.chunk_shift < to; chunk++)
    chunks_.erase(chunk);
}

}  // namespace pcow
