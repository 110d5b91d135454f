// The superblock of an open image that counts, and writing the next one.
//
// A write that fails may have been done, in part or as a whole. Then it is unknown which structure
// a crash would leave, and nothing is durable until settle() has written a superblock over it:
// until then check_settled() makes syncs fail.
#pragma once

#include <atomic>
#include <memory>

#include "engine/format/superblock.h"
#include "engine/image/image_file.h"
#include "engine/image/space.h"

namespace pcow {

class Superblocks {
 public:
  // `space`: of the writer; set when the image has been opened for writing.
  Superblocks(const ImageFile& image, const std::unique_ptr<Space>& space, Superblock superblock)
      : image_(image), space_(space), current_(std::move(superblock)) {}

  // The superblock that counts. The caller holds the gate, or `structure`.
  const Superblock& current() const { return current_; }
  // Replaces the superblock that counts. The caller holds the gate exclusively.
  void adopt(Superblock superblock) { current_ = std::move(superblock); }
  // From now on the superblock says that this process has the image open. Called before any other
  // thread knows the image.
  void mark_open();

  // For the methods below the caller holds `structure`.
  Superblock next();  // the current one with the next generation, to be written
  Result<void> put(const Superblock& next);
  // Writes the current one with the next generation; the gate may be held exclusively.
  Result<void> renew();
  Result<void> settle();

  // Any thread may call these.
  bool in_doubt() const { return doubt_ != 0; }
  Result<void> check_settled() const;  // fails if a crash could make a failed change count

 private:
  const ImageFile& image_;
  const std::unique_ptr<Space>& space_;
  // Guarded by the gate; the writer changes it with `structure` held as well.
  Superblock current_;
  uint64_t last_generation_ = 0;  // guarded by `structure`: the highest whose write has begun, or 0
  std::atomic<int> doubt_{
      // The errno of a failed write, after which the file may contain a change that has not
      // happened; or 0.
      0};
};

}  // namespace pcow
