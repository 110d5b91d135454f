// What a write fault of a monitored process needs, decided before anything is done.
#pragma once

#include <bit>

#include "engine/format/entry.h"
#include "engine/format/geometry.h"
#include "engine/image/image.h"

namespace pcow {

enum class FaultPlan {
  kMap,           // the sub-block is the layer's own already
  kCopySubBlock,  // it becomes own, as a copy from a lower layer
  kComplete,      // all sub-blocks of the block become own, as copies from lower layers or as zeros
  // No layer holds anything: a block of zeros, with followers for a sequential writer.
  kExpand,
};

// The situation of a fault. The caller holds the chunk's lock, so the entry cannot change.
struct FaultScene {
  Entry entry;       // of the block, in the active layer
  uint16_t below;    // sub-blocks of the block that the layers below hold
  bool in_snapshot;  // a snapshot of this image, not only its base, holds one of these sub-blocks
  uint32_t number;   // the number of the sub-block that was written to
};

// Copying a single sub-block needs the least disk space, so this is done as long as writes are
// scattered. The whole block is completed
//   - if the writer comes from the block before and continues (`hint.ahead`), or if the caller asks
//     for it (`hint.whole_block`),
//   - if half of the block is already own,
//   - at the second write, if a snapshot of this image holds the block: pages that were used before
//     a snapshot are likely to be used again, and whole blocks bring them back sooner.
inline FaultPlan plan_fault(const Geometry& geometry, const FaultScene& scene,
                            const FaultHint& hint) {
  const Entry& entry = scene.entry;
  const bool is_own = entry.written >> scene.number & 1;
  if (is_own && entry.index) return FaultPlan::kMap;
  const bool copies = (scene.below & ~entry.written) != 0;
  if (!copies) return entry.empty() ? FaultPlan::kExpand : FaultPlan::kComplete;

  const auto own = static_cast<uint32_t>(std::popcount(entry.written));
  const bool scattered = hint.ahead == 0 && !hint.whole_block && own < geometry.sub_blocks() / 2 &&
                         (own == 0 || !scene.in_snapshot);
  // If sub-blocks are *zero here* and the entry names no block, a copy would allocate a block for a
  // single sub-block: complete it instead.
  const bool has_block = entry.index || entry.empty();
  return scattered && has_block && (scene.below >> scene.number & 1) ? FaultPlan::kCopySubBlock
                                                                     : FaultPlan::kComplete;
}

}  // namespace pcow
