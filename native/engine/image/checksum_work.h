// Making checksums of an open image: one thread at a time. close() ends this work, and waits for
// it.
#pragma once

#include <atomic>
#include <mutex>

namespace pcow {

class ChecksumWork {
 public:
  [[nodiscard]] std::unique_lock<std::mutex> begin() { return std::unique_lock(checksumming_); }
  // From now on is_ending() is true. Returns when no thread makes checksums any more.
  [[nodiscard]] std::unique_lock<std::mutex> end() {
    ending_ = true;
    return begin();
  }
  bool is_ending() const { return ending_; }

 private:
  std::mutex checksumming_;  // taken before all other locks
  std::atomic<bool> ending_{false};
};

}  // namespace pcow
