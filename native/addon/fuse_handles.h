// The open flat files of a mount, by the number that FUSE carries as fh. One table for the process, because FUSE requests come
// on threads that know no Node environment.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "addon/fuse_cache.h"
#include "addon/shared_image.h"
#include "engine/error.h"
#include "engine/image/image.h"

namespace pcow::addon {

// Shared by the table and by the requests that use it.
struct FuseHandle {
  std::shared_ptr<SharedImage> image;
  std::shared_ptr<Image> viewed;  // null where there is no view
  std::shared_ptr<View> view;     // null: the active layer. Declared after its image, so let go of before it
  uint64_t layer = 0;             // id of the frozen layer; 0: the active one
  bool writable = false;
  bool lent = false;                // the image's writer is a monitor
  bool refuses_cached = false;      // what the kernel writes back is older than the image
  std::atomic<bool> direct{false};  // it was opened past the page cache
  std::atomic<uint32_t> opener{0};  // the thread that opened the file; 0: not known yet

  // Set while the file is being opened: until open has answered, no other request can name the handle.
  std::string path;
  FuseContent content;
  // Whether FuseCache remembers the content, which it may from the first request after open on.
  std::atomic<bool> remembered{true};
};

class FuseHandles {
 public:
  // Every number handed out is at least this. fuse-native carries fh through a signed and an unsigned 32-bit field: numbers
  // from 2^30 to 2^31 - 1 survive both, and leave the small ones to JavaScript.
  static constexpr uint64_t kFirst = 0x40000000;
  static constexpr uint64_t kLast = 0x7fffffff;

  // The process's table. Never destroyed: FUSE threads may outlive static objects.
  static FuseHandles& instance();

  // Any thread.
  uint64_t add(std::shared_ptr<FuseHandle> handle);
  // Puts `handle` in the place of the one under `fh`, which is returned; null where there is none. Later requests use it.
  std::shared_ptr<FuseHandle> replace(uint64_t fh, std::shared_ptr<FuseHandle> handle);
  std::shared_ptr<FuseHandle> find(uint64_t fh) const;
  // Also while it is being replaced: what takes its place has the same.
  void set_opener(uint64_t fh, uint32_t thread);
  // Whether a file of this image is open for writing, by whatever opening of the image.
  bool is_written(const SharedImage& image) const;
  // The handle that is gone from the table, or null. Requests under way keep it alive.
  std::shared_ptr<FuseHandle> remove(uint64_t fh);

 private:
  // Guards the two below: shared by find (each request), exclusive for add and remove. Held for the look-up only.
  mutable std::shared_mutex lock_;
  std::unordered_map<uint64_t, std::shared_ptr<FuseHandle>> handles_;
  uint64_t next_ = kFirst;
};

}  // namespace pcow::addon
