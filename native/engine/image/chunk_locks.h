// Locks for the entries of tables. A lock covers the read-modify-write of the entries of a chunk,
// in any table. Chunks that are far apart share one.
#pragma once

#include <array>
#include <mutex>

#include "engine/format/geometry.h"

namespace pcow {

class ChunkLocks {
 public:
  std::mutex& of(uint64_t block) { return locks_[block / kBlocksPerChunk % locks_.size()]; }

 private:
  std::array<std::mutex, 64> locks_;
};

}  // namespace pcow
