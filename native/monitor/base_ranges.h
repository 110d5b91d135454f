// Which sub-blocks of an image read as its base, because no layer of the image itself holds
// anything there: only they may show shared memory (session_sharing.cc). What its layers hold is
// looked up once for each chunk, because that takes as many reads as there are layers. After that
// it only grows: a snapshot, and the deletion of one, change nothing in what they hold together. If
// the writer is another process, it is looked up again each time.
//
// If a snapshot is mapped, it is shared itself, and nothing may hide it.
//
// All methods are called with the session's `handling` held.
#pragma once

#include <bitset>
#include <cstdint>
#include <unordered_map>

#include "engine/image/image.h"
#include "monitor/region.h"

namespace pcow {

class BaseRanges {
 public:
  // `view`: of the snapshot; null: the image itself is mapped. `writable`: by this process.
  BaseRanges(Image* image, const View* view, const RegionGeometry& geometry, bool writable)
      : image_(image), view_(view), geometry_(geometry), writable_(writable) {}

  // `offset` is any offset in the sub-block. If that cannot be found out, it does not.
  bool reads_as_base(uint64_t offset);
  // The image holds these bytes now: whole sub-blocks, in one chunk.
  void are_held(uint64_t from, uint64_t to);
  // The image may hold more than before between these two offsets.
  void look_again(uint64_t from, uint64_t to);
  // … if another process writes it.
  void look_again_for_reader(uint64_t from, uint64_t to) {
    if (!writable_) look_again(from, to);
  }

 private:
  using Held = std::bitset<RegionGeometry::kSubBlocksPerChunk>;

  Image* const image_;
  const View* const view_;
  const RegionGeometry geometry_;
  const bool writable_;
  std::unordered_map<uint64_t, Held> chunks_;  // by number; those that were looked at
};

}  // namespace pcow
