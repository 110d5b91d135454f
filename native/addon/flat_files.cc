#include "addon/flat_files.h"

#include <fcntl.h>

#include <utility>

namespace pcow::addon {

namespace {

constexpr mode_t kRights = 0777;

}  // namespace

FlatFiles& FlatFiles::instance() {
  static FlatFiles& files = *new FlatFiles();
  return files;
}

void FlatFiles::tell(const std::string& name, FlatFile file) {
  const std::lock_guard guard(lock_);
  files_[name] = std::move(file);
}

void FlatFiles::forget(const std::string& name) {
  const std::lock_guard guard(lock_);
  files_.erase(name);
}

size_t FlatFiles::size() const {
  const std::lock_guard guard(lock_);
  return files_.size();
}

std::optional<FlatFile> FlatFiles::find(const std::string& name) const {
  const std::lock_guard guard(lock_);
  const auto found = files_.find(name);
  if (found == files_.end()) return std::nullopt;
  return found->second;
}

std::optional<struct stat> FlatFiles::status(int directory, const std::string& name, const std::string& file) const {
  const auto known = find(name);
  struct stat status;
  if (!known || fstatat(directory, file.c_str(), &status, 0) != 0) return std::nullopt;
  if (status.st_dev != known->device || status.st_ino != known->inode) return std::nullopt;
  const auto shared = known->image.lock();
  if (!shared) return std::nullopt;
  const auto image = shared->lease();
  if (!image) return std::nullopt;
  status.st_mode = S_IFREG | (status.st_mode & kRights);
  status.st_nlink = 1;
  status.st_ino = known->number;
  status.st_size = static_cast<off_t>((*image)->size());
  return status;
}

}  // namespace pcow::addon
