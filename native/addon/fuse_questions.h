// What only JavaScript knows, and a thread of the FUSE loop must know before it answers a request.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <mutex>
#include <unordered_map>

namespace pcow::addon {

struct FuseQuestion {
  enum class Kind {
    kOpen,   // may this process open the flat file of an image that was lent to a monitor?
    kWrite,  // may it be written again? The answer comes when the file's handle has its writer back
  };
  uint64_t id = 0;
  Kind kind{};
  uint64_t fh = 0;
  uint32_t pid = 0;  // kOpen: a thread of the process, as this process sees it
};

class FuseQuestions {
 public:
  // The process's. Never destroyed: FUSE threads may outlive static objects.
  static FuseQuestions& instance();

  // Before the mount's first request. `ask` returns at once; false: nobody can answer any more.
  void set_ask(std::function<bool(const FuseQuestion&)> ask) { ask_ = std::move(ask); }
  // Any thread of the loop; it must hold no image. Waits for the answer: a negative errno, 0, or (kOpen) kDirect.
  int ask(FuseQuestion::Kind kind, uint64_t fh, uint32_t pid);
  // JavaScript thread.
  void answer(uint64_t id, int result);

  static constexpr int kDirect = 1;  // yes, past the page cache

 private:
  std::function<bool(const FuseQuestion&)> ask_;
  std::mutex lock_;  // guards the rest
  uint64_t last_id_ = 0;
  std::unordered_map<uint64_t, std::promise<int>> open_;
};

}  // namespace pcow::addon
