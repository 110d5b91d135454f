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

void FuseCache::forget(const std::string& path) {
  std::lock_guard guard(lock_);
  contents_.erase(path);
}

void FuseCache::forget_in(const std::string& directory,
                          const std::unordered_set<std::string>& present) {
  std::lock_guard guard(lock_);
  std::erase_if(contents_, [&](const auto& remembered) {
    const std::string& path = remembered.first;
    return path.starts_with(directory) && !present.contains(path.substr(directory.size()));
  });
}

size_t FuseCache::size() const {
  std::lock_guard guard(lock_);
  return contents_.size();
}

}  // namespace pcow::addon
