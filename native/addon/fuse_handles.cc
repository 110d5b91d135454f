#include "addon/fuse_handles.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace pcow::addon {

FuseHandles& FuseHandles::instance() {
  static FuseHandles& handles = *new FuseHandles();
  return handles;
}

uint64_t FuseHandles::add(std::shared_ptr<FuseHandle> handle) {
  std::unique_lock guard(lock_);
  // Numbers are used in turn, so that a late request with a closed number does not reach another
  // file.
  while (handles_.contains(next_)) next_ = next_ == kLast ? kFirst : next_ + 1;
  const uint64_t fh = next_;
  next_ = next_ == kLast ? kFirst : next_ + 1;
  handles_.emplace(fh, std::move(handle));
  return fh;
}

std::shared_ptr<FuseHandle> FuseHandles::replace(uint64_t fh, std::shared_ptr<FuseHandle> handle) {
  std::unique_lock guard(lock_);
  const auto found = handles_.find(fh);
  if (found == handles_.end()) return nullptr;
  handle->direct = found->second->direct.load();
  handle->opener = found->second->opener.load();
  handle->granted = found->second->granted;
  return std::exchange(found->second, std::move(handle));
}

std::shared_ptr<FuseHandle> FuseHandles::find(uint64_t fh) const {
  std::shared_lock guard(lock_);
  const auto found = handles_.find(fh);
  return found == handles_.end() ? nullptr : found->second;
}

void FuseHandles::set_opener(uint64_t fh, uint32_t thread) {
  std::shared_lock guard(lock_);
  const auto found = handles_.find(fh);
  if (found != handles_.end()) found->second->opener = thread;
}

bool FuseHandles::is_written(const SharedImage& image) const {
  std::shared_lock guard(lock_);
  return std::any_of(handles_.begin(), handles_.end(), [&](const auto& entry) {
    return entry.second->writable && entry.second->image->path() == image.path();
  });
}

std::shared_ptr<FuseHandle> FuseHandles::remove(uint64_t fh) {
  std::unique_lock guard(lock_);
  auto node = handles_.extract(fh);
  return node.empty() ? nullptr : std::move(node.mapped());
}

}  // namespace pcow::addon
