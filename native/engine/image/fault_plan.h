// What a write fault of a monitored process needs, decided before anything is done.
#pragma once

#include <bit>

#include "engine/format/entry.h"
#include "engine/format/geometry.h"
#include "engine/image/image.h"

namespace pcow {

enum class FaultPlan {
  kMap,           // the sub-block is the layer's own already
  kCopySubBlock,  // it becomes own as a copy of what lies below
  kComplete,      // all sub-blocks of the block become own, copied from below or as zeros
  kExpand,        // nothing is there in any layer: a block of zeros, and followers for a writer that goes on
};

// What is there. Of the active layer: as seen under the chunk's lock.
struct FaultScene {
  Entry entry;       // of the block, in the active layer
  uint16_t below;    // sub-blocks of the block that the layers below hold
  bool in_snapshot;  // one of these sub-blocks lies in a snapshot of this image, not in its base
  uint32_t number;   // of the sub-block that was written to
};

// A copy of a single sub-block takes the least disk space, so it is made as long as writes are scattered. The whole block is completed
//   - where the writer comes from the block before, and goes on (`hint.ahead`), or the caller asks for it (`hint.whole_block`)
//   - where half of the block is own already
//   - at the second write, where a snapshot of this image holds the block: what was in use when the snapshot was taken is likely to be
//     used again, and comes back sooner in whole blocks
inline FaultPlan plan_fault(const Geometry& geometry, const FaultScene& scene, const FaultHint& hint) {
  const Entry& entry = scene.entry;
  const bool is_own = entry.written >> scene.number & 1;
  if (is_own && entry.index) return FaultPlan::kMap;
  const bool copies = (scene.below & ~entry.written) != 0;
  if (!copies) return entry.empty() ? FaultPlan::kExpand : FaultPlan::kComplete;

  const auto own = static_cast<uint32_t>(std::popcount(entry.written));
  const bool scattered =
      hint.ahead == 0 && !hint.whole_block && own < geometry.sub_blocks() / 2 && (own == 0 || !scene.in_snapshot);
  // Where sub-blocks are *zero here* and no block is named, a copy would take a block for one of them: the rest comes along.
  const bool has_block = entry.index || entry.empty();
  return scattered && has_block && (scene.below >> scene.number & 1) ? FaultPlan::kCopySubBlock : FaultPlan::kComplete;
}

}  // namespace pcow
