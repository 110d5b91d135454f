#include "addon/flat_files.h"

#include <fcntl.h>

#include <utility>

#include "addon/directory_watch.h"

namespace pcow::addon {

namespace {

constexpr mode_t kRights = 0777;
constexpr std::string_view kImageSuffix = ".pcow";

// While this mount writes the image, its own work (checksums, merges) changes the times and the
// disk use, and nothing reports that.
constexpr std::chrono::seconds kWhileWritten{1};
constexpr std::chrono::seconds kUntilItChanges = std::chrono::hours(1);

}  // namespace

std::string image_file_of(const std::string& name) { return name + std::string(kImageSuffix); }

std::optional<std::string> flat_file_of(std::string_view file) {
  if (file.starts_with('.') || !file.ends_with(kImageSuffix)) return std::nullopt;
  return std::string(file.substr(0, file.size() - kImageSuffix.size()));
}

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

std::optional<KeptStatus> FlatFiles::status(int directory, const std::string& name) const {
  const auto known = find(name);
  const auto shared = known ? known->image.lock() : nullptr;
  if (!shared) return std::nullopt;
  const std::string file = image_file_of(name);
  KeptStatus found;
  struct stat& status = found.status;
  if (fstatat(directory, file.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  const auto changes = known->lent
                           ? Changes::kUnnoticed
                           : DirectoryWatch::instance().changes_of(file, status, !shared->writer());
  if (changes != Changes::kUnnoticed)
    found.valid = shared->writer() ? kWhileWritten : kUntilItChanges;
  const bool again = S_ISLNK(status.st_mode) || changes == Changes::kNoticedFromNowOn;
  if (again && fstatat(directory, file.c_str(), &status, 0) != 0) return std::nullopt;
  if (status.st_dev != known->device || status.st_ino != known->inode) return std::nullopt;
  const auto image = shared->lease();
  if (!image) return std::nullopt;
  status.st_mode = S_IFREG | (status.st_mode & kRights);
  status.st_nlink = 1;
  status.st_ino = known->number;
  status.st_size = static_cast<off_t>((*image)->size());
  return found;
}

}  // namespace pcow::addon
