// What the moving thread of a session has to do: bring a chunk of the image into one piece of the
// file, because it has too many boundaries and its blocks are scattered (ChunkMove, image.h).
//
// The thread copies and syncs without `handling`. Then it takes `handling` for one part of the chunk
// after the other: takes the part down, moves it, and maps it again. The fault thread cannot do
// that: mremap(2) returns only when it has read its event.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

namespace pcow {

class Moving {
 public:
  bool runs() const { return runs_; }  // whether there is a moving thread
  // Wants the chunk that starts at this offset of the image. Ignored while another one is wanted,
  // and for some seconds after a failure, because each attempt needs a free window of the file.
  void want(uint64_t start);
  // From want() until done().
  bool is_wanted() const { return wanted_; }

  void begin() { runs_ = true; }  // the moving thread runs
  // The moving thread: waits for a chunk; nothing after end().
  std::optional<uint64_t> wait();
  void done() { wanted_ = false; }
  void failed();
  // While the moving thread waits for `handling`, the fault thread leaves it alone: otherwise a
  // busy guest's faults would keep it for ever.
  bool asks_for_handling() const { return asks_; }
  void ask_for_handling(bool asks) { asks_ = asks; }

  void end();
  bool ended();

 private:
  std::atomic<bool> runs_{false};
  std::atomic<bool> wanted_{false};
  std::atomic<bool> asks_{false};
  std::atomic<uint64_t> not_before_ns_{0};
  std::mutex mutex_;  // guards the next two
  std::optional<uint64_t> start_;
  bool ended_ = false;
  std::condition_variable changed_;
};

}  // namespace pcow
