// The open flat files of a mount, by the number that FUSE passes as fh. There is one table for the
// process, because FUSE requests arrive on threads that belong to no Node environment.
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

// The table and the requests that use the handle share it.
struct FuseHandle {
  std::shared_ptr<SharedImage> image;
  std::shared_ptr<Image> viewed;  // null if there is no view
  // null: the active layer. Declared after its image, so that it is released before the image
  std::shared_ptr<View> view;
  uint64_t layer = 0;  // id of the frozen layer; 0: the active one
  bool writable = false;
  bool lent = false;  // a monitor is the image's writer
  // The pages that the kernel writes back are older than the image.
  bool refuses_cached = false;
  std::atomic<bool> direct{false};  // it was opened without the page cache
  std::atomic<uint32_t> opener{0};  // the thread that opened the file; 0: not known yet
  std::string granted;              // the flat file, if OpenGrants has opened it

  // Set while the file is being opened: no other request can use the handle before open has
  // answered.
  std::string path;
  FuseContent content;
  // Whether FuseCache has stored the content, which is allowed from the first request after open.
  std::atomic<bool> remembered{true};
};

class FuseHandles {
 public:
  // Numbers of handles start here. fuse-native passes fh through a signed and an unsigned 32-bit
  // field. Numbers from 2^30 to 2^31 - 1 survive both, and leave smaller numbers to JavaScript.
  static constexpr uint64_t kFirst = 0x40000000;
  static constexpr uint64_t kLast = 0x7fffffff;

  // The only table of the process. Never destroyed: FUSE threads may outlive static objects.
  static FuseHandles& instance();

  // Any thread.
  uint64_t add(std::shared_ptr<FuseHandle> handle);
  // Replaces the handle of `fh`, and returns the old one; null if there is none. Later requests use
  // the new one.
  std::shared_ptr<FuseHandle> replace(uint64_t fh, std::shared_ptr<FuseHandle> handle);
  std::shared_ptr<FuseHandle> find(uint64_t fh) const;
  // Also while the handle is being replaced: the new handle gets the same opener.
  void set_opener(uint64_t fh, uint32_t thread);
  // Whether a file of this image is open for writing, through any opening of the image.
  bool is_written(const SharedImage& image) const;
  // Returns the removed handle, or null. Requests in progress keep it alive.
  std::shared_ptr<FuseHandle> remove(uint64_t fh);

 private:
  // Guards the two members below: find (each request) locks it shared, add and remove lock it
  // exclusively. Held for the look-up only.
  mutable std::shared_mutex lock_;
  std::unordered_map<uint64_t, std::shared_ptr<FuseHandle>> handles_;
  uint64_t next_ = kFirst;
};

}  // namespace pcow::addon
