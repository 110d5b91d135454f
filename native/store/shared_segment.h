// The mount's end of one segment (attach/segment.h): the memory, and who else has it.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>

#include "attach/packet.h"
#include "attach/segment.h"
#include "engine/error.h"

namespace pcow {

class SharedSegment {
 public:
  static Result<std::unique_ptr<SharedSegment>> make();
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  bool is_filled(uint64_t slice) const { return segment::is_filled(*filled_, slice); }
  uint64_t bytes() const { return used_.count() * segment::kSliceSize; }  // of memory in use
  // Where the content of a slice that is not filled is to be written. If that succeeded, filled()
  // follows.
  char* begin(uint64_t slice) {
    used_.set(slice);
    return content_ + slice * segment::kSliceSize;
  }
  void filled(uint64_t slice);

  // A read-only descriptor for somebody else; invalid if the kernel has none to give.
  protocol::Descriptor for_reading() const;
  // Whether anybody else has it open or mapped, or is about to receive it. As long as somebody has,
  // its memory stays in use, even if this object is gone.
  bool is_held() const;

 private:
  SharedSegment(protocol::Descriptor memory, char* content);

  const protocol::Descriptor memory_;
  char* const content_;
  segment::Filled* const filled_;
  std::bitset<segment::kSlices> used_;  // slices that are filled, or could not be filled
};

}  // namespace pcow
