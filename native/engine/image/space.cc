#include "engine/image/space.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "engine/rules.h"

namespace pcow {

Space::Space(std::shared_ptr<File> file, const Geometry& geometry, uint64_t file_size)
    : file_(std::move(file)),
      geometry_(geometry),
      blocks_(file_size >> geometry.block_shift()),
      durable_blocks_(blocks_),
      syncing_blocks_(blocks_) {}

uint64_t Space::find_free_run(uint64_t count, uint64_t align, uint64_t from) const {
  for (uint64_t first = round_up(from, align); first + count <= blocks_;) {
    const uint64_t obstacle = used_.next(true, first, first + count);
    if (obstacle == first + count) return first;
    first = round_up(used_.next(false, obstacle, blocks_), align);
  }
  return kNone;
}

void Space::mark_data(uint64_t first, uint64_t count) {
  const std::lock_guard lock(mutex_);
  used_.set(first, count, true);
}

void Space::mark_range(uint64_t first, uint64_t count) {
  const std::lock_guard lock(mutex_);
  used_.set(first, count, true);
  for (uint64_t stretch = first / kStretch; stretch <= (first + count - 1) / kStretch; stretch++)
    range_stretches_.insert(stretch);
}

// Grows the file under the mutex. Every block that is handed out is inside the file, so a file that
// was cut short from outside is recognized by entries that name blocks behind its end.
Result<void> Space::grow_to(uint64_t blocks) {
  if (blocks <= blocks_) return {};
  if (keeps(Rule::kFileReachesBeforeUse)) {
    // Growing a file again that was cut short would hide the loss.
    PCOW_TRY(file_->check_length(blocks_ << geometry_.block_shift()));
    PCOW_TRY(file_->resize(blocks << geometry_.block_shift()));
  }
  blocks_ = blocks;
  return {};
}

uint32_t Space::take(uint64_t index) {
  used_.set(index, 1, true);
  return static_cast<uint32_t>(index);
}

bool Space::is_free_now(uint64_t index) const {
  return index && index < std::min(blocks_, kMaxBlockIndex + 1) && !used_.contains(index);
}

bool Space::is_free(uint64_t index) const {
  const std::lock_guard lock(mutex_);
  return is_free_now(index);
}

bool Space::take_block(uint64_t index) {
  const std::lock_guard lock(mutex_);
  if (!is_free_now(index)) return false;
  take(index);
  return true;
}

// The file grows for windows up to here: an eighth beyond the image, or beyond what is in use if
// that is more.
uint64_t Space::roomy_end(uint64_t image_blocks) const {
  const uint64_t needed =
      std::max(round_up(image_blocks, kStretch), used_.size()) + range_stretches_.size() * kStretch;
  return std::min(needed + needed / 8, kMaxBlockIndex + 1);
}

// … and for the first blocks of chunks up to here, once there are frozen layers.
uint64_t Space::first_end(uint64_t image_blocks) const {
  const uint64_t room =
      frozen_ + std::min(frozen_, image_blocks) + range_stretches_.size() * kStretch;
  return std::min(room, kMaxBlockIndex + 1);
}

// Whether data keeps away from the block, because its stretch is for tables and layer directories.
// (Those of a tiny image need no such care.)
bool Space::spares(uint64_t index, uint64_t image_blocks) const {
  return image_blocks >= kStretch && range_stretches_.contains(index / kStretch);
}

// Where data begins when the file grows.
uint64_t Space::next_end(uint64_t image_blocks) const {
  return spares(blocks_, image_blocks) ? round_up(blocks_ + 1, kStretch) : blocks_;
}

// kNone if no window of the size is free in the file.
uint64_t Space::find_window(uint64_t size, uint64_t image_blocks) {
  uint64_t& hint = window_hints_[static_cast<size_t>(std::countr_zero(size))];
  uint64_t found = find_free_run(size, size, hint);
  while (found != kNone && spares(found, image_blocks))
    found = find_free_run(size, size, (found / kStretch + 1) * kStretch);
  hint = found == kNone ? blocks_ / size * size : found;
  return found != kNone && found + size <= kMaxBlockIndex + 1 ? found : kNone;
}

void Space::open_window(uint64_t first, uint64_t size) {
  const uint64_t unit = first / kSmallestWindow;
  open_windows_.set(unit, (first + size - 1) / kSmallestWindow - unit + 1, true);
}

// The first free block that is in no open window, and not among tables; kNone if there is none.
uint64_t Space::find_scattered(uint64_t image_blocks) {
  const uint64_t end = std::min(blocks_, kMaxBlockIndex + 1);
  uint64_t index = used_.next(false, scattered_hint_, end);
  while (index < end) {
    uint64_t unit = 0;
    if (spares(index, image_blocks))
      unit = kStretch;
    else if (is_open(index))
      unit = kSmallestWindow;
    else
      break;
    index = used_.next(false, (index / unit + 1) * unit, end);
  }
  scattered_hint_ = std::min(index, end);
  return index < end ? index : kNone;
}

// The largest window that the block may begin; 0: none.
uint64_t Space::window_size(const Wish& wish) const {
  const uint64_t largest = largest_window(wish.image_blocks);
  if (!has_frozen_ || wish.own >= kManyOfChunk) return largest;
  if (wish.sequence >= kLongSequence)
    return std::clamp(std::bit_floor(4 * wish.sequence), smallest_window(wish.image_blocks),
                      largest);
  return 0;
}

Result<uint32_t> Space::allocate_block(const Wish& wish) {
  const std::lock_guard lock(mutex_);
  if (is_free_now(wish.in_window)) return take(wish.in_window);

  const uint64_t image_blocks = wish.image_blocks;
  const uint64_t roomy = roomy_end(image_blocks);
  // A chunk's first block gets no window inside the file: those are kept for long sequences.
  const uint64_t largest = largest_window(image_blocks);
  const uint64_t end = round_up(next_end(image_blocks), largest);
  if (has_frozen_ && wish.own == wish.coming && end + largest <= first_end(image_blocks) &&
      grow_to(end + largest)) {
    open_window(end, largest);
    return take(end + wish.position % largest);
  }
  for (uint64_t size = window_size(wish); size >= smallest_window(image_blocks); size /= 2) {
    uint64_t window = find_window(size, image_blocks);
    if (window == kNone) {
      const uint64_t behind = round_up(next_end(image_blocks), size);
      // A filesystem may not let the file grow that far.
      if (behind + size <= roomy && grow_to(behind + size)) window = behind;
    }
    if (window == kNone) continue;
    open_window(window, size);
    return take(window + wish.position % size);
  }

  if (is_free_now(wish.next) && !is_open(wish.next)) return take(wish.next);
  uint64_t any = find_scattered(image_blocks);
  // In large steps: the kernel takes its time to make a file longer.
  const uint64_t longer =
      std::max(next_end(image_blocks) + kSmallestWindow, std::min(blocks_ + kStretch, roomy));
  if (any == kNone && longer <= roomy && grow_to(longer)) any = find_scattered(image_blocks);
  if (any == kNone && std::exchange(sealing_, false)) {
    scattered_hint_ = 0;
    any = find_scattered(image_blocks);
  }
  if (any != kNone) return take(any);
  const uint64_t last = std::min(blocks_, kMaxBlockIndex + 1);
  any = block_hint_ = used_.next(false, block_hint_, last);
  if (any < last) return take(any);
  if (blocks_ > kMaxBlockIndex)
    return Error(Code::kNoSpace, file_->path() + ": all block numbers of the format are in use");
  PCOW_TRY(grow_to(blocks_ + 1));
  return take(blocks_ - 1);
}

Result<uint64_t> Space::take_window(uint64_t count, uint64_t image_blocks) {
  const std::lock_guard lock(mutex_);
  const uint64_t size = largest_window(image_blocks);
  uint64_t first = find_window(size, image_blocks);
  if (first == kNone) {
    first = round_up(next_end(image_blocks), size);
    if (first + size > kMaxBlockIndex + 1)
      return Error(Code::kNoSpace, file_->path() + ": all block numbers of the format are in use");
    PCOW_TRY(grow_to(first + size));
  }
  open_window(first, size);
  used_.set(first, count, true);
  return first;
}

void Space::note_frozen() {
  const std::lock_guard lock(mutex_);
  has_frozen_ = true;
  frozen_ = used_.size();
  open_windows_ = {};
  scattered_hint_ = 0;
}

void Space::begin_seal() {
  const std::lock_guard lock(mutex_);
  sealing_ = true;
  scattered_hint_ = blocks_;
}

void Space::end_seal() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(sealing_, false)) scattered_hint_ = 0;
}

Result<uint64_t> Space::allocate_range(uint64_t count) {
  const std::lock_guard lock(mutex_);
  for (const uint64_t stretch : range_stretches_) {
    const uint64_t end = std::min((stretch + 1) * kStretch, blocks_);
    for (uint64_t first = used_.next(false, stretch * kStretch, end); first + count <= end;) {
      const uint64_t obstacle = used_.next(true, first, first + count);
      if (obstacle == first + count) {
        used_.set(first, count, true);
        return first;
      }
      first = used_.next(false, obstacle, end);
    }
  }
  uint64_t first = find_free_run(round_up(count, kStretch), kStretch, 0);
  if (first == kNone) {
    first = blocks_;
    PCOW_TRY(grow_to(first + count));
  }
  used_.set(first, count, true);
  for (uint64_t stretch = first / kStretch; stretch <= (first + count - 1) / kStretch; stretch++)
    range_stretches_.insert(stretch);
  return first;
}

Space::Reserve Space::reserve() const {
  const std::lock_guard lock(mutex_);
  return reserve_;
}

// Takes these blocks if they are free and have valid numbers. The caller holds the mutex.
bool Space::take_range(uint64_t first, uint64_t count) {
  if (first == 0 || count == 0 || first + count > std::min(blocks_, kMaxBlockIndex + 1))
    return false;
  if (used_.next(true, first, first + count) < first + count) return false;
  used_.set(first, count, true);
  // For layer directories, after the reserve is spent.
  for (const uint64_t end : {first, first + count - 1}) range_stretches_.insert(end / kStretch);
  return true;
}

uint64_t Space::reserve_blocks() const {
  return geometry_.blocks_for(kReserveBytes + geometry_.block_size());
}

void Space::adopt_reserve(const Reserve& left) {
  const std::lock_guard lock(mutex_);
  if (left.blocks > reserve_blocks() || !take_range(left.first, left.blocks)) return;
  // Allocating shows whether the reserve still has its disk space: a copy of the file may have
  // holes there.
  place_of_reserve_ = left;
  if (file_->allocate(uint64_t{left.first} << geometry_.block_shift(),
                      uint64_t{left.blocks} << geometry_.block_shift()))
    reserve_ = left;
  else
    free(left.first, left.blocks);
}

Result<void> Space::keep_reserve() {
  Reserve next;
  {
    const std::lock_guard lock(mutex_);
    if (reserve_.blocks || making_reserve_ || goes_without_reserve) return {};
    // What a deletion has spent must not be used for data, neither as disk space nor as blocks of a
    // file that cannot grow.
    const bool spending = spending_;
    const auto left =
        Error(Code::kNoSpace, ENOSPC,
              file_->path() + ": the remaining disk space is reserved for a deletion");
    if (spending && !file_->disk_has(2 * (reserve_blocks() << geometry_.block_shift())))
      return left;
    // Allocating behind an end that was cut off would hide the loss.
    if (keeps(Rule::kFileReachesBeforeUse))
      PCOW_TRY(file_->check_length(blocks_ << geometry_.block_shift()));
    const uint64_t blocks = reserve_blocks();
    // Apart from data, so that layer directories can use it. If the file cannot grow, the reserve
    // is anywhere, or there is none.
    uint64_t first = round_up(blocks_, kStretch);
    if (!spending && take_range(place_of_reserve_.first, place_of_reserve_.blocks)) {
      next = place_of_reserve_;
    } else {
      if (!grow_to(first + blocks)) {
        if (spending) return left;
        first = find_free_run(blocks, 1, 1);
      }
      if (first != kNone && take_range(first, blocks))
        next = {static_cast<uint32_t>(first), static_cast<uint32_t>(blocks)};
    }
    making_reserve_ = true;
  }
  Result<void> outcome;
  if (next.blocks)
    outcome = file_->allocate(uint64_t{next.first} << geometry_.block_shift(),
                              uint64_t{next.blocks} << geometry_.block_shift());
  const std::lock_guard lock(mutex_);
  making_reserve_ = false;
  if (outcome) {
    reserve_ = next;
  } else if (next.blocks) {
    free(next.first, next.blocks);
  }
  if (next.blocks) place_of_reserve_ = next;
  return outcome;
}

bool Space::spend_reserve() {
  Reserve spent;
  {
    const std::lock_guard lock(mutex_);
    if (!reserve_.blocks) return false;
    spending_ = true;
    spent = std::exchange(reserve_, {});
  }
  // Nothing was ever written there: it reads as zeros, durably, before and after.
  const auto punched = file_->punch(uint64_t{spent.first} << geometry_.block_shift(),
                                    uint64_t{spent.blocks} << geometry_.block_shift());
  const std::lock_guard lock(mutex_);
  free(spent.first, spent.blocks);
  return punched.ok();
}

void Space::end_spending() {
  {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(spending_, false)) return;
  }
  (void)keep_reserve();  // if this fails, the next caller that needs a block tries again
}

void Space::release_now(uint64_t index) {
  const std::lock_guard lock(mutex_);
  held_.erase(index);
  released_.push_back(index);
}

void Space::free(uint64_t first, uint64_t count) {
  used_.set(first, count, false);
  block_hint_ = std::min(block_hint_, first);
  if (!sealing_) scattered_hint_ = std::min(scattered_hint_, first);
  // Only for windows that are free now: otherwise each freed block would start a search.
  for (uint64_t size = 1; size <= kStretch; size *= 2) {
    uint64_t& hint = window_hints_[static_cast<size_t>(std::countr_zero(size))];
    for (uint64_t at = first / size * size; at < std::min(first + count, hint); at += size)
      if (used_.next(true, at, at + size) == at + size) hint = at;
  }
}

void Space::release(uint64_t first, uint64_t count) {
  const std::lock_guard lock(mutex_);
  if (!keeps(Rule::kFreeingBeforeReuse)) return free(first, count);
  for (uint64_t index = first; index < first + count; index++) {
    if (holding_ && keeps(Rule::kHoldReleasesDuringMerges)) {
      held_.insert(index);
    } else {
      released_.push_back(index);
    }
  }
}

void Space::hold_releases(bool hold) {
  const std::lock_guard lock(mutex_);
  holding_ = hold;
  if (hold) return;
  released_.insert(released_.end(), held_.begin(), held_.end());
  held_.clear();
}

std::vector<uint64_t> Space::take_released() {
  const std::lock_guard lock(mutex_);
  return std::exchange(released_, {});
}

Result<void> Space::finish_sync(const std::vector<uint64_t>& released) {
  {
    const std::lock_guard lock(mutex_);
    for (const uint64_t index : punched_) free(index, 1);
    punched_.clear();
  }
  // A released block is changed only here, and no other thread knows it: no lock is needed during
  // the system calls.
  std::vector<uint64_t> sorted = released;
  std::sort(sorted.begin(), sorted.end());
  size_t done = 0;
  Result<void> outcome;
  while (done < sorted.size()) {
    size_t last = done;
    while (last + 1 < sorted.size() && sorted[last + 1] == sorted[last] + 1) last++;
    outcome = file_->punch(sorted[done] << geometry_.block_shift(), (last + 1 - done)
                                                                        << geometry_.block_shift());
    if (!outcome) break;
    done = last + 1;
  }
  const std::lock_guard lock(mutex_);
  if (!keeps(Rule::kHoleBeforeReuse))
    for (size_t i = 0; i < done; i++) free(sorted[i], 1);
  punched_.insert(punched_.end(), sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(done));
  released_.insert(released_.end(), sorted.begin() + static_cast<ptrdiff_t>(done), sorted.end());
  return outcome;
}

bool Space::has_pending() const {
  const std::lock_guard lock(mutex_);
  return !released_.empty() || !punched_.empty();
}

uint64_t Space::file_end() const {
  const std::lock_guard lock(mutex_);
  return blocks_ << geometry_.block_shift();
}

bool Space::is_durable(uint64_t index) const {
  const std::lock_guard lock(mutex_);
  return file_->is_persistent() || index < durable_blocks_;
}

void Space::note_sync_began() {
  const std::lock_guard lock(mutex_);
  syncing_blocks_ = blocks_;
}

void Space::note_sync_done() {
  const std::lock_guard lock(mutex_);
  durable_blocks_ = syncing_blocks_;
}

Result<void> Space::punch_free() {
  const uint64_t end = blocks_ << geometry_.block_shift();
  for (uint64_t offset = 0; offset < end;) {
    auto data = file_->next_data(offset, end);
    if (!data) return data.error();
    if (*data == end) break;
    auto hole = file_->next_hole(*data, end);
    if (!hole) return hole.error();
    const uint64_t last = geometry_.blocks_for(*hole);
    for (uint64_t block = *data >> geometry_.block_shift(); block < last;) {
      const uint64_t first = used_.next(false, block, last);
      block = used_.next(true, first, last);
      if (first < block)
        PCOW_TRY(file_->punch(first << geometry_.block_shift(), (block - first)
                                                                    << geometry_.block_shift()));
    }
    offset = *hole;
  }
  return {};
}

void Space::shorten(uint64_t image_blocks) {
  const std::lock_guard lock(mutex_);
  if (!keeps(Rule::kGoneBeforeShorter))
    for (const auto* gone : {&released_, &punched_})
      for (const uint64_t index : *gone) used_.set(index, 1, false);
  const uint64_t end = round_up(used_.end(), largest_window(image_blocks));
  if (end >= blocks_) return;
  // Also if this fails: the file may be shorter than before, and what lies behind is not used.
  blocks_ = end;
  durable_blocks_ = std::min(durable_blocks_, end);
  syncing_blocks_ = std::min(syncing_blocks_, end);
  (void)file_->shorten(end << geometry_.block_shift());
}

Result<void> Space::punch_tail() {
  const uint64_t from = used_.end() << geometry_.block_shift();
  auto size = file_->size();
  if (!size) return size.error();
  if (from >= *size) return {};
  auto data = file_->next_data(from, *size);
  if (!data) return data.error();
  return *data < *size ? file_->punch(*data, *size - *data) : Result<void>();
}

}  // namespace pcow
