// Questions that a thread of the FUSE loop must have answered by JavaScript before it can answer a
// request.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "engine/error.h"

namespace pcow::addon {

struct FuseQuestion {
  enum class Kind {
    kOpen,   // may this process open the flat file of an image that was lent to a monitor?
    kWrite,  // may it be written again? Answered when the file's handle has its writer back
    kFetch,  // `remote` is needed. Answered when the reader should try again
  };
  uint64_t id = 0;
  Kind kind{};
  uint64_t fh = 0;
  uint32_t pid = 0;  // kOpen: a thread of the process, as this process sees it
  std::shared_ptr<const RemoteBlock> remote = nullptr;  // kFetch
};

class FuseQuestions {
 public:
  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static FuseQuestions& instance();

  // Before the mount's first request. `ask` returns at once; false: there is nothing left that
  // could answer.
  void set_ask(std::function<bool(const FuseQuestion&)> ask) { ask_ = std::move(ask); }
  // Any thread of the loop. The caller must hold no lease. Waits for the answer: a negative errno,
  // 0, or (kOpen) kDirect.
  int ask(FuseQuestion::Kind kind, uint64_t fh, uint32_t pid);
  // Asks for a block that the thread `pid` needs (0: unknown). The answer may take as long as a
  // registry is away, so the wait also ends, with -EINTR, if the process is killed, or nothing is
  // mounted any more: otherwise neither could end.
  int fetch(std::shared_ptr<const RemoteBlock> remote, uint32_t pid);
  // While the loop runs: the descriptor of /dev/fuse; otherwise -1.
  void set_channel(int descriptor) { channel_.store(descriptor); }
  // JavaScript thread.
  void answer(uint64_t id, int result);

  static constexpr int kDirect = 1;  // yes, but without the page cache

 private:
  std::future<int> put(FuseQuestion* question);

  std::function<bool(const FuseQuestion&)> ask_;
  std::atomic<int> channel_{-1};
  std::mutex lock_;  // guards the rest
  uint64_t last_id_ = 0;
  std::unordered_map<uint64_t, std::promise<int>> open_;
};

}  // namespace pcow::addon
