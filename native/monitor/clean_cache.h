// The clean copies of a session: data of lower layers, copied into the memory of this process and
// write-protected. They may be dropped at any time, because the next access faults again. The
// oldest copies are dropped when all sessions of the process together exceed its budget. Before a
// sub-block becomes the image's own, its clean copies are dropped (mapper.h).
//
// All methods are called with the session's `handling` held.
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
  // `view`: what is copied; null: the image's active layer. `budget`: bytes, for all sessions of
  // this process together. `regions`: of the session.
  CleanCache(Image* image, const View* view, FaultDescriptor* faults,
             const RegionGeometry& geometry, const Regions& regions, uint64_t budget, bool writable,
             Statistics* statistics);

  // Copies the unit at `offset`, and what follows it for a sequential reader, up to `limit`. Wakes
  // the threads that wait for it.
  Result<void> serve(Region* region, uint64_t offset, uint64_t limit = UINT64_MAX);
  // While no fault waits: copies data near `offset` that was in use before the last snapshot, so
  // that it causes no faults of its own.
  void serve_around(Region* region, uint64_t offset);

  // Bytes [from, to) of the image have become its own in `region`: drops the clean copies of them
  // in all other regions.
  void drop_elsewhere(const Region* region, uint64_t from, uint64_t to);
  // The image's own block has replaced the copy at `offset`.
  void forget(Region* region, uint64_t offset);
  // The mappings of bytes [from, to) of the region, whole chunks, were taken down.
  // forget_sub_blocks() follows with the number of clean copies among them.
  void forget_units(const Region* region, uint64_t from, uint64_t to);
  void forget_sub_blocks(uint64_t sub_blocks) {
    count(-static_cast<int64_t>(sub_blocks * geometry_.sub_block_size()));
  }

 private:
  uint64_t ahead(Region* region, uint64_t offset, uint64_t limit) const;
  Result<void> copy(Region* region, uint64_t offset, uint64_t ahead);
  Result<void> put(Region* region, uint64_t low, uint64_t high);
  void drop(Region* region, uint64_t from, uint64_t to);
  void keep_budget();
  void count(int64_t bytes);
  bool has_room_for(uint64_t bytes) const;

  // bytes in all sessions: they share the budget
  static inline std::atomic<int64_t> of_process_{0};

  Image* const image_;
  const View* const view_;
  FaultDescriptor* const faults_;
  const RegionGeometry geometry_;
  const Regions& regions_;
  const uint64_t budget_;
  const bool writable_;
  const uint64_t unit_;  // bytes that one read of a lower layer copies
  Statistics* const statistics_;

  struct Unit {
    Region* region;
    uint64_t offset;
  };
  std::deque<Unit> units_;  // oldest first
  std::vector<char> buffer_;
};

}  // namespace pcow
