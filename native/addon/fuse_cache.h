// What the kernel's page cache holds of each flat file, as far as the mount can know. So opening a
// file again keeps its cached pages (QEMU may have them mapped), and opening it after a rollback,
// or when another image has its name, drops them.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

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

 private:
  // Guards contents_. Held for short times, twice for each open.
  mutable std::mutex lock_;
  // By path, because the kernel's inodes go by path. One element for each flat file that was ever
  // opened.
  std::unordered_map<std::string, FuseContent> contents_;
};

}  // namespace pcow::addon
