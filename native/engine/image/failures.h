// The last operation on an open image that failed, for ImageInfo::last_error.
#pragma once

#include <mutex>
#include <optional>

#include "engine/image/clock.h"
#include "engine/image/image.h"

namespace pcow {

class Failures {
 public:
  // An operation that the caller cancelled has not failed.
  void note(const Error& error) {
    if (error.code == Code::kCancelled) return;
    const std::lock_guard lock(mutex_);
    last_ = LastError{error, realtime_ns()};
  }
  template <typename T>
  Result<T> noted(Result<T> result) {
    if (!result) note(result.error());
    return result;
  }
  std::optional<LastError> last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;       // a leaf: never held while another lock is taken
  std::optional<LastError> last_;  // guarded by `mutex_`
};

}  // namespace pcow
