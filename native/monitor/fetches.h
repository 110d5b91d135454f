// Blocks of lazy images that faults wait for, because their bytes are still in a registry, and what
// the mount was asked to fetch. All methods may be called on any thread; none of them waits for the
// mount. A fault that waits is tried again and again, and so says again what it needs: nothing must
// be remembered for it here except when it began to wait.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "engine/error.h"

namespace pcow {

class Fetches {
 public:
  // The mount fetches. `eventfd` is written after every want.
  void offer(int eventfd);
  // The mount is gone, with all that was asked of it.
  void withdraw();

  // A fault waits for this block. The mount is asked for it, unless it has been asked already.
  void want(const RemoteBlock& block);
  struct Want {
    uint32_t number;  // the answer has the same
    RemoteBlock block;
  };
  std::vector<Want> take_wants();  // to be sent to the mount
  // The mount's answer. `why`: why it cannot be fetched; empty: the faults may try again. Returns
  // false if nobody awaits it.
  bool take_answer(uint32_t number, const std::string& why);

  // For how long the fault that has waited longest has been waiting; 0: none waits.
  struct Waiting {
    uint64_t ns = 0;
    std::string why;  // the mount's last answer; empty: it is fetching
  };
  Waiting longest();

 private:
  using Key = std::tuple<std::string, uint64_t, uint64_t>;  // uuid, layer, block
  struct Wanted {
    uint64_t since_ns;
    uint64_t wanted_ns;          // when a fault last said so
    uint32_t asked = 0;          // the number; 0: not asked
    uint64_t not_before_ns = 0;  // after a failure
    std::string why;
  };
  void forget_old(uint64_t now);

  std::mutex mutex_;  // guards the rest
  bool offered_ = false;
  int eventfd_ = -1;
  uint32_t last_number_ = 0;
  std::map<Key, Wanted> wanted_;
  std::vector<Want> wants_;  // not sent yet
};

}  // namespace pcow
