// Maps the image's own blocks into the memory of this process.
//
// The kernel limits the number of mappings of a process, and scattered blocks need one mapping
// each. Therefore the boundaries between mappings are counted. When all sessions together exceed
// the budget, promote() completes the most fragmented chunk and maps it in one piece. If its blocks
// are scattered in the file, the moving thread brings them together first (moving.h).
//
// All methods are called with the session's `handling` held.
#pragma once

#include <atomic>
#include <cstdint>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/base_ranges.h"
#include "monitor/clean_cache.h"
#include "monitor/moving.h"
#include "monitor/region.h"
#include "monitor/stalls.h"
#include "monitor/statistics.h"

namespace pcow {

class Mapper {
 public:
  // `synced`: see is_synced(). `budget`: mappings, for all sessions of this process together.
  // `regions`: of the session.
  Mapper(Image* image, bool synced, FaultDescriptor* faults, const RegionGeometry& geometry,
         const Regions& regions, uint64_t budget, BaseRanges* base, CleanCache* clean,
         Moving* moving, Stalls* stalls, Statistics* statistics)
      : image_(image),
        synced_(synced),
        faults_(faults),
        geometry_(geometry),
        regions_(regions),
        budget_(budget),
        base_(base),
        clean_(clean),
        moving_(moving),
        stalls_(stalls),
        statistics_(statistics) {}

  // Maps a run of the image's own blocks, and wakes the threads that wait for it. `made`: the run
  // was just allocated or copied: maps all of it in one piece, over parts that are already mapped.
  // Otherwise maps the part around `offset` that is not mapped yet.
  Result<void> map_extent(Region* region, uint64_t offset, const Extent& extent, bool made);
  // Reduces the number of mappings if it exceeds the budget.
  void keep_budget() {
    if (of_process_.load(std::memory_order_relaxed) > static_cast<int64_t>(budget_)) promote();
  }
  // Whether there is room for mappings of shared memory: what is only read must not use up the
  // budget, because promote() would copy it into the image.
  bool has_room_for_shared() const {
    return of_process_.load(std::memory_order_relaxed) < static_cast<int64_t>(budget_ / 2);
  }
  // Faults make more mappings while a chunk is moved, but not many more than the budget.
  bool waits_for_move() const {
    return moving_->is_wanted() && of_process_.load(std::memory_order_relaxed) >
                                       static_cast<int64_t>(budget_ + budget_ / 8);
  }
  // How many boundaries between mappings there are in [from, to]: where sub-blocks in different
  // states meet, or where those meet that are not neighbours in the file or in a segment.
  int64_t boundaries_between(const Region& region, uint64_t from, uint64_t to) const;
  void count_boundaries(Region* region, uint64_t offset, int64_t change);
  // Chunks of a region have been taken down, which had this many boundaries.
  void forget_boundaries(int64_t boundaries) { of_process_ -= boundaries; }

  // These blocks were moved, after the range was taken down. If they cannot be mapped now, they come
  // back by faults.
  void map_moved(Region* region, const Extent& extent);
  // A chunk was moved: its boundaries are counted anew.
  void count_again(Region* region, uint64_t chunk);
  // A chunk was completed because the process was over its budget.
  void note_promotion();

  // Whether blocks are mapped with MAP_SYNC, because the image lies in persistent memory: a store
  // that the application flushes itself is then durable, and so is the position of its page in the
  // file. mmap(2)
  bool is_synced() const { return synced_; }

 private:
  bool promote();
  bool map_chunk(Region* region, uint64_t chunk, int64_t* pieces);
  bool map_blocks(void* address, size_t length, int protection, uint64_t in_file);
  void take_over(Region* region, uint64_t from, uint64_t to);
  Result<void> replace_shared_elsewhere(const Region* region, uint64_t from, uint64_t to);

  // mappings in all sessions: they share the limit
  static inline std::atomic<int64_t> of_process_{0};

  Image* const image_;
  const bool synced_;
  FaultDescriptor* const faults_;
  const RegionGeometry geometry_;
  const Regions& regions_;
  const uint64_t budget_;
  BaseRanges* const base_;
  CleanCache* const clean_;
  Moving* const moving_;
  Stalls* const stalls_;
  Statistics* const statistics_;
};

}  // namespace pcow
