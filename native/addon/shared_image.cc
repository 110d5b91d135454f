#include "addon/shared_image.h"

namespace pcow::addon {

namespace {

Error closed(const std::string& path) {
  return Error(Code::kClosed, path + " is closed: open it again");
}

}  // namespace

std::atomic<uint64_t> SharedImage::openings_{0};

Result<SharedImage::Lease> SharedImage::lease() {
  std::lock_guard guard(lock_);
  if (closing_) return closed(path_);
  ++leases_;
  return Lease(shared_from_this());
}

void SharedImage::give_back() {
  std::function<void()> start;
  {
    std::lock_guard guard(lock_);
    if (--leases_ == 0 && closing_) start = std::exchange(start_close_, nullptr);
  }
  if (start) start();
}

Result<void> SharedImage::close_when_idle(std::function<void()> start) {
  {
    std::lock_guard guard(lock_);
    if (closing_) return closed(path_);
    closing_ = true;
    if (leases_ > 0) {
      start_close_ = std::move(start);
      return {};
    }
  }
  start();
  return {};
}

}  // namespace pcow::addon
