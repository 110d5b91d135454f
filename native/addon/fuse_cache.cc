#include "addon/fuse_cache.h"

namespace pcow::addon {

FuseCache& FuseCache::instance() {
  static FuseCache& cache = *new FuseCache();
  return cache;
}

bool FuseCache::holds(const std::string& path, const FuseContent& content) const {
  std::lock_guard guard(lock_);
  const auto found = contents_.find(path);
  return found != contents_.end() && found->second == content;
}

void FuseCache::remember(const std::string& path, const FuseContent& content) {
  std::lock_guard guard(lock_);
  contents_[path] = content;
}

}  // namespace pcow::addon
