// Moves a chunk as the monitor does, for tests of the engine.
#pragma once

#include <functional>

#include "check.h"
#include "engine/format/geometry.h"
#include "engine/image/image.h"

// All of the chunk at `offset`, in parts. `meanwhile` is called between the copying and the moving
// of each: what it changes may remain where it is.
inline void move_chunk(pcow::Image* image, uint64_t offset,
                       const std::function<void()>& meanwhile = {}) {
  const uint64_t block = image->info().block_size;
  const uint64_t chunk = pcow::kBlocksPerChunk * block;
  const uint64_t start = offset / chunk * chunk;
  const uint64_t end = std::min(start + chunk, image->size());
  const uint64_t part = 32 * block;
  auto move = MUST(pcow::ChunkMove::begin(image, offset));
  pcow::FaultWork work;
  for (uint64_t from = start; from < end; from += part) {
    MUST(move->copy(from, from + part, &work));
    if (meanwhile) meanwhile();
    MUST(move->move(from, from + part));
  }
  if (!meanwhile) CHECK(move->is_done());
}
