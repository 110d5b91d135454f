// What the sharing thread of a session has to do: put shared memory in place of missing sub-blocks
// and clean copies. The fault thread cannot do it, because mremap(2) returns only when that thread
// has read its event.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>

#include "monitor/shared_base.h"

namespace pcow {

struct Fault {
  char* address;
  bool write;
  uint64_t since_ns;   // when its event was read
  bool alone = false;  // not to be served by shared memory
  // If it is: up to where it was to be served by that
  uint64_t served_to = 0;
};

class SharingQueue {
 public:
  struct Task {
    uint64_t from;  // bytes of the image
    uint64_t to;
    // That waits for this: the bytes are in one chunk and in one segment, and filled. Without one:
    // wherever clean copies are
    std::optional<Fault> fault;
    bool coming = false;  // one slice, which is not filled yet, but may be soon
  };

  // After end(), tasks are ignored, and there are none. Those with a fault come first.
  void add(Task task);
  bool is_empty();
  // Nothing if there is none for so long, or after end().
  std::optional<Task> wait(std::chrono::milliseconds limit);
  void end();
  bool ended();

 private:
  std::mutex mutex_;  // guards the rest
  std::deque<Task> faults_;
  std::deque<Task> others_;
  bool ended_ = false;
  std::condition_variable changed_;
};

}  // namespace pcow
