#include "addon/open_grants.h"

namespace pcow::addon {

OpenGrants& OpenGrants::instance() {
  static OpenGrants& grants = *new OpenGrants();
  return grants;
}

void OpenGrants::grant(const std::string& name, std::shared_ptr<SharedImage> image) {
  const std::lock_guard guard(lock_);
  grants_[name] = {std::move(image), {}};
}

std::vector<OpenGrants::Open> OpenGrants::take_back(const std::string& name) {
  const std::lock_guard guard(lock_);
  const auto taken = grants_.extract(name);
  std::vector<Open> open;
  if (taken.empty()) return open;
  for (const auto& [fh, writable] : taken.mapped().open) open.push_back({fh, writable});
  return open;
}

std::shared_ptr<SharedImage> OpenGrants::find(const std::string& name, bool writable) const {
  const std::lock_guard guard(lock_);
  const auto found = grants_.find(name);
  if (found == grants_.end()) return nullptr;
  const auto& image = found->second.image;
  return writable && !image->writer() ? nullptr : image;
}

uint64_t OpenGrants::open(const std::string& name, std::shared_ptr<FuseHandle> handle) {
  const std::lock_guard guard(lock_);
  const auto found = grants_.find(name);
  if (found == grants_.end() || found->second.image != handle->image) return 0;
  const bool writable = handle->writable;
  const uint64_t fh = FuseHandles::instance().add(std::move(handle));
  found->second.open.emplace(fh, writable);
  return fh;
}

void OpenGrants::release(const std::string& name, uint64_t fh) {
  std::unique_lock guard(lock_);
  const auto found = grants_.find(name);
  const bool ours = found != grants_.end() && found->second.open.erase(fh) != 0;
  guard.unlock();
  if (ours) {
    FuseHandles::instance().remove(fh);
  } else if (tell_) {
    tell_(fh);
  }
}

}  // namespace pcow::addon
