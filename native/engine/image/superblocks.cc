#include "engine/image/superblocks.h"

#include <algorithm>

#include "engine/image/page_cache.h"

namespace pcow {

void Superblocks::mark_open() {
  current_.clean = false;
  current_.boot = boot_id();
  current_.cache = cache_token_of(*image_.file);
  current_.opener = Opener::self();
}

// A watcher may have seen a generation whose write only began, so none is used twice. The next
// generation belongs to the other slot, or to the same slot if the last write failed.
Superblock Superblocks::next() {
  Superblock next = current_;
  next.generation = std::max(current_.generation, last_generation_) + (doubt_ ? 2 : 1);
  last_generation_ = next.generation;
  next.reserve = space_->reserve().first;
  next.reserve_blocks = space_->reserve().blocks;
  return next;
}

// Readers may have seen what a failed write stored, and a crash would make it count. So the
// superblock that still counts is written over it.
Result<void> Superblocks::put(const Superblock& next) {
  auto outcome = write_superblock(*image_.file, next);
  doubt_ = outcome ? 0 : outcome.error().err;
  if (!outcome) (void)settle();
  return outcome;
}

Result<void> Superblocks::renew() {
  const Superblock again = next();
  PCOW_TRY(put(again));
  adopt(again);
  return {};
}

Result<void> Superblocks::settle() {
  const Superblock again = next();
  auto outcome = write_superblock(*image_.file, again);
  doubt_ = outcome ? 0 : outcome.error().err;
  return outcome;
}

Result<void> Superblocks::check_settled() const {
  if (const int err = doubt_)
    return Error(Code::kIo, err,
                 image_.path +
                     ": a change failed, and it is not known whether it is on the disk. Nothing is "
                     "durable until that is known");
  return {};
}

}  // namespace pcow
