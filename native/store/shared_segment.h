// The mount's end of one segment (attach/segment.h): the memory, and who else has it.
#pragma once

#include <cstdint>
#include <memory>

#include "attach/packet.h"
#include "attach/segment.h"
#include "engine/error.h"

namespace pcow {

class SharedSegment {
 public:
  // `ends`: an inotify descriptor. It gets IN_IGNORED for watch() when the memory is free again.
  static Result<std::unique_ptr<SharedSegment>> make(int ends);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  bool is_filled(uint64_t slice) const { return segment::is_filled(*filled_, slice); }
  // Puts large pages under these slices, where whole ones fit and nothing is filled yet. What is
  // filled then costs a fraction of the time, here and in the processes that map it. If the kernel
  // has none to give, nothing happens.
  void enlarge_pages(uint64_t first, uint64_t count);
  // Where the content of a slice that is not filled is to be written. If that succeeded, filled()
  // follows.
  char* at(uint64_t slice) const { return content_ + slice * segment::kSliceSize; }
  void filled(uint64_t slice);

  // A read-only descriptor for somebody else; invalid if the kernel has none to give.
  protocol::Descriptor for_reading() const;
  // Whether anybody else has it open or mapped, or is about to receive it. As long as somebody has,
  // its memory stays in use, even if this object is gone. So does the memory of which somebody has
  // only a name (open(2), O_PATH), which nobody can find out before it was to be freed.
  bool is_held() const;
  int watch() const { return watch_; }

 private:
  SharedSegment(protocol::Descriptor memory, char* content, int watch);

  const protocol::Descriptor memory_;
  char* const content_;
  segment::Filled* const filled_;
  const int watch_;
};

}  // namespace pcow
