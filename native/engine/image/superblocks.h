// The superblock of an open image that counts, and the writing of the next one.
//
// A write that fails may have been done, in part or as a whole. Then it is not known which structure a crash would leave, and nothing is
// durable until settle() has written a superblock over it: check_settled() keeps syncs from returning before.
#pragma once

#include <atomic>
#include <memory>

#include "engine/format/superblock.h"
#include "engine/image/image_file.h"
#include "engine/image/space.h"

namespace pcow {

class Superblocks {
 public:
  // `space`: of the writer; there once the image was opened for writing.
  Superblocks(const ImageFile& image, const std::unique_ptr<Space>& space, Superblock superblock)
      : image_(image), space_(space), current_(std::move(superblock)) {}

  // The one that counts. With the gate held, or `structure`.
  const Superblock& current() const { return current_; }
  // … from now on. With the gate held exclusively.
  void adopt(Superblock superblock) { current_ = std::move(superblock); }
  // That this process has the image open is what all later ones say. Before anybody knows the image.
  void mark_open();

  // The rest: with `structure` held.
  Superblock next();  // the current one, as it is to be written again
  Result<void> put(const Superblock& next);
  Result<void> renew();  // the current one, of the next generation: also with the gate held exclusively
  Result<void> settle();

  // Any thread.
  bool in_doubt() const { return doubt_ != 0; }
  Result<void> check_settled() const;  // an error: a crash could make a change count that failed

 private:
  const ImageFile& image_;
  const std::unique_ptr<Space>& space_;
  Superblock current_;            // guarded by the gate; as the writer, changed with `structure` held as well
  uint64_t last_generation_ = 0;  // guarded by `structure`: the highest that we have begun to write, or 0
  std::atomic<int> doubt_{0};     // the errno for which that failed, where the file may say what has not happened; or 0
};

}  // namespace pcow
