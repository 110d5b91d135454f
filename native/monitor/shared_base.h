// What this process has of the mount's clean store: segments of the layer that the image stands on
// (attach/segment.h), and what it has asked the mount for. All methods may be called on any thread;
// only await() waits for the mount.
//
// A mapping of a segment is private and writable, so that nothing that this process does reaches
// another one, and its pages are write-protected before anybody sees them: the first write to each
// is a fault, as it is to a clean copy.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "attach/fault_descriptor.h"
#include "attach/packet.h"
#include "attach/segment.h"

namespace pcow {

class SharedBase {
 public:
  explicit SharedBase(FaultDescriptor* faults);
  ~SharedBase();
  SharedBase(const SharedBase&) = delete;
  SharedBase& operator=(const SharedBase&) = delete;

  // The mount has the layer, with `size` bytes. `eventfd` is written after every want.
  void offer(uint64_t size, int eventfd);
  // The mount is gone, with all that was asked of it. What it has given stays. Nothing is asked for
  // until the next mount has made its offer: the protocol does not permit it earlier.
  void withdraw();
  bool is_offered();

  // The end of the content that can be mapped from `offset` on, without a gap and in one segment;
  // at most `limit`. `offset` itself if there is none.
  uint64_t filled_to(uint64_t offset, uint64_t limit);
  // The beginning of the first slice after the one at `offset` that can be mapped; at most `limit`.
  uint64_t missing_to(uint64_t offset, uint64_t limit);
  // Asks for what is not filled yet of bytes [from, to), as far as it is in one segment. With
  // from = to, asks only for the segment, if there is one. Returns false if there is nothing to ask
  // for.
  bool want(uint64_t from, uint64_t to);
  // The same for a sequential reader who goes on at `from`. `ahead`: how far it is served ahead
  // without the mount (streams.h).
  void want_ahead(uint64_t from, uint64_t ahead);
  // Whether await() may find these bytes: the mount was asked for them, and has been fast enough.
  bool is_coming(uint64_t offset);
  // Returns whether these bytes are filled: for as long as copies of them would take, they are
  // waited for. One thread at a time.
  bool await(uint64_t offset);

  struct Want {
    uint64_t slice;
    uint64_t count;
  };
  std::vector<Want> take_wants();  // to be sent to the mount
  // The mount's answer to the want that began with this slice. Returns the bytes that were asked
  // for; of an answer that is no longer awaited, the first slice; none if it says nothing.
  struct Bytes {
    uint64_t from = 0;
    uint64_t to = 0;
  };
  Bytes take_answer(uint64_t slice, protocol::Descriptor segment);

  // Maps bytes [from, to), which are filled and of one segment, anywhere: populated, registered and
  // write-protected.
  Result<char*> map(uint64_t from, uint64_t to, int protection);

 private:
  struct Segment {
    std::shared_ptr<protocol::Descriptor> memory;  // null: the mount has not given it
    const segment::Filled* filled = nullptr;       // set if `memory` is
    // Slices that the mount could not fill, because it has no room, or because their bytes are
    // remote: for how long they are not asked for again.
    std::map<uint64_t, uint64_t> refused_until_ns;
  };
  struct Asked {
    uint64_t count;
    uint64_t until_ns;  // for how long the answer is awaited
  };

  bool is_filled(uint64_t slice) const;
  bool is_asked(uint64_t slice) const;
  bool is_refused(uint64_t slice, uint64_t now) const;
  bool may_have(uint64_t number) const;  // a segment

  FaultDescriptor* const faults_;
  const size_t most_segments_;

  std::mutex mutex_;      // guards the rest
  bool offered_ = false;  // by the mount that this process is attached to now
  int eventfd_ = -1;
  uint64_t size_ = 0;                     // bytes of the layer; 0: there is no store
  std::map<uint64_t, Segment> segments_;  // by offset / kContent
  std::map<uint64_t, Asked> asked_;       // by the first slice
  std::vector<Want> wants_;               // of these, what was not sent yet
  uint64_t hopeless_ns_ = 0;              // await() has waited too long: not again for so long
  uint64_t hopeless_until_ns_ = 0;
};

}  // namespace pcow
