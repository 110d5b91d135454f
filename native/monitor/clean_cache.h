// Clean copies of a session: what its image does not hold itself, read from the layers below, and put into the memory of this process
// write-protected. They may be dropped at any time, since the next access faults again; the oldest are, when all sessions of the process
// have more than its budget. What becomes the image's own is dropped from here first (mapper.h).
//
// All with the session's `handling` held.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/region.h"
#include "monitor/statistics.h"

namespace pcow {

class CleanCache {
 public:
  // `budget`: bytes, of all sessions of this process together. `regions`: of the session.
  CleanCache(Image* image, FaultDescriptor* faults, const RegionGeometry& geometry, const Regions& regions,
             uint64_t budget, bool writable, Statistics* statistics);

  // The unit at `offset`, what follows where a reader goes on, and wakes who waits for it.
  Result<void> serve(Region* region, uint64_t offset);
  // As long as nobody waits: what was in use before the last snapshot near `offset`, so that it needs no faults of its own.
  void serve_around(Region* region, uint64_t offset);

  // Another mapping of the image may show clean copies of what becomes the image's own in `region`.
  void drop_elsewhere(const Region* region, uint64_t from, uint64_t to);
  // What is at `offset` has been replaced by the image's own block.
  void forget(Region* region, uint64_t offset);
  // Chunks of the region, bytes [from, to), have been taken down, and with them so many sub-blocks of clean copies.
  void forget_units(const Region* region, uint64_t from, uint64_t to);
  void forget_sub_blocks(uint64_t sub_blocks) { count(-static_cast<int64_t>(sub_blocks * geometry_.sub_block_size())); }

 private:
  uint64_t ahead(Region* region, uint64_t offset) const;
  Result<void> copy(Region* region, uint64_t offset, uint64_t ahead);
  Result<void> put(Region* region, uint64_t low, uint64_t high);
  void drop(Region* region, uint64_t from, uint64_t to);
  void keep_budget();
  void count(int64_t bytes);
  bool has_room_for(uint64_t bytes) const;

  static inline std::atomic<int64_t> of_process_{0};  // bytes, of all sessions: the budget is one for all

  Image* const image_;
  FaultDescriptor* const faults_;
  const RegionGeometry geometry_;
  const Regions& regions_;
  const uint64_t budget_;
  const bool writable_;
  const uint64_t unit_;  // bytes that a read of a lower block copies at once
  Statistics* const statistics_;

  struct Unit {
    Region* region;
    uint64_t offset;
  };
  std::deque<Unit> units_;  // oldest first
  std::vector<char> buffer_;
};

}  // namespace pcow
