// What the kernel's page cache holds of each flat file, as far as the mount can know. So opening a
// file again keeps its cached pages (QEMU may have them mapped), and opening it after a rollback,
// or when another image has its name, drops them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace pcow::addon {

// Equal values mean equal bytes, except for what was written through the kernel itself.
struct FuseContent {
  uint64_t image = 0;       // SharedImage::serial()
  uint64_t layer = 0;       // 0: the active layer
  uint64_t generation = 0;  // Image::content_generation() for the active layer
  bool operator==(const FuseContent&) const = default;
};

class FuseCache {
 public:
  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static FuseCache& instance();

  // Any thread. Whether all pages that the kernel may hold of `path` have this content.
  bool holds(const std::string& path, const FuseContent& content) const;
  // Any thread. The kernel has dropped older pages of `path`: an open that was not allowed to keep
  // them is complete.
  void remember(const std::string& path, const FuseContent& content);
  // Any thread. These files are gone: `path`, or all in `directory` whose names are not in
  // `present`. If one exists nevertheless, its next open drops the kernel's pages of it, which is
  // always correct.
  void forget(const std::string& path);
  void forget_in(const std::string& directory, const std::unordered_set<std::string>& present);
  // Any thread.
  size_t size() const;

 private:
  // Guards contents_. Held for short times, twice for each open.
  mutable std::mutex lock_;
  // By path, because the kernel's inodes go by path. One element for each flat file and each file
  // of a snapshot that was opened, until it is gone.
  std::unordered_map<std::string, FuseContent> contents_;
};

}  // namespace pcow::addon
