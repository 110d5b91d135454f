// The moving thread (moving.h), apart from faults.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "monitor/direct_reads.h"
#include "monitor/session.h"

namespace pcow {
namespace {

// Short, because such a read may wait for a fault, which may wait for this thread.
constexpr int kReadPatienceMs = 100;
// Bytes, but at least one block: what is copied and synced as one, and what is moved while faults
// wait.
constexpr uint64_t kCopied = uint64_t{2} << 20;
constexpr uint64_t kMoved = uint64_t{256} << 10;
// Blocks that were stored to and synced meanwhile are copied again.
constexpr int kRounds = 3;
constexpr uint64_t kAfterFailureNs = 10'000'000'000;
constexpr uint64_t kRestAfterPart = 3;  // times as long as faults have waited

}  // namespace

void Moving::want(uint64_t start) {
  if (monotonic_ns() < not_before_ns_ || wanted_.exchange(true)) return;
  const std::lock_guard lock(mutex_);
  start_ = start;
  changed_.notify_one();
}

void Moving::failed() { not_before_ns_ = monotonic_ns() + kAfterFailureNs; }

std::optional<uint64_t> Moving::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ended_ || start_; });
  return ended_ ? std::nullopt : std::exchange(start_, std::nullopt);
}

void Moving::end() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_one();
}

bool Moving::ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

void Session::move_chunks() {
  threads::ask_for_short_slices();
  moving_.begin();
  while (const auto start = moving_.wait()) {
    if (auto moved = move_chunk(*start); !moved) {
      moving_.failed();
      const Handling held(this);
      stalls_.report(moved.error());
    }
    moving_.done();
    const uint64_t one = 1;
    (void)!write(wake_, &one, sizeof one);  // the fault thread may wait for this
  }
}

// If this ends early, the chunk is wanted again later.
Result<void> Session::move_chunk(uint64_t start) {
  auto move = ChunkMove::begin(image_.get(), start);
  if (!move) return move.error();
  const uint64_t end = start + geometry_.chunk_size();
  const uint64_t copied = std::max(kCopied, geometry_.block_size());
  const uint64_t moved = std::max(kMoved, geometry_.block_size());
  FaultWork work;
  for (int round = 0; round < kRounds; round++) {
    for (uint64_t from = start; from < end && !(*move)->is_done(); from += copied) {
      PCOW_TRY((*move)->copy(from, from + copied, &work));
      for (uint64_t at = from; at < from + copied; at += moved) {
        if (moving_.ended()) return {};
        if (!(*move)->has_copies(at, at + moved)) continue;
        auto went_on = move_part(move->get(), at, at + moved);
        if (!went_on) return went_on.error();
        if (!*went_on) return {};
      }
    }
  }
  statistics_.copied_bytes += work.copied_bytes;
  const Handling held(this);
  for (const auto& region : regions_)
    if (start < region->end() && end > region->offset()) mapper_.count_again(region.get(), start);
  mapper_.note_promotion();
  return {};
}

// Returns false if this must wait: a snapshot is about to take everything down, or a read takes
// long.
Result<bool> Session::move_part(ChunkMove* move, uint64_t from, uint64_t to) {
  // The device would go on writing into the old blocks.
  if (!direct_reads::hold_back(kReadPatienceMs)) return false;
  const uint64_t began = monotonic_ns();
  auto outcome = replace_part(move, from, to);
  const uint64_t took = monotonic_ns() - began;
  direct_reads::go_on();
  if (!mapper_.waits_for_move())
    std::this_thread::sleep_for(std::chrono::nanoseconds(kRestAfterPart * took));
  return outcome;
}

Result<bool> Session::replace_part(ChunkMove* move, uint64_t from, uint64_t to) {
  moving_.ask_for_handling(true);
  const Handling held(this);
  moving_.ask_for_handling(false);
  if (step_ == Step::kPrepared) return false;
  for (const auto& region : regions_) {
    const uint64_t low = std::max(from, region->offset());
    const uint64_t high = std::min(to, region->end());
    if (low >= high) continue;
    PCOW_TRY(replace(region.get(), low, high));
    forget_part(region.get(), low, high);
  }
  auto moved = move->move(from, to);
  if (!moved) return moved.error();
  for (const Extent& extent : *moved) {
    base_.are_held(extent.offset, extent.offset + extent.length);
    for (const auto& region : regions_) mapper_.map_moved(region.get(), extent);
  }
  return true;
}

// The sub-blocks are missing now. The chunk's boundaries are counted when all of it was moved.
void Session::forget_part(Region* region, uint64_t from, uint64_t to) {
  const uint64_t sub = geometry_.sub_block_size();
  for (uint64_t at = from; at < to; at = at / sub * sub + sub) {
    clean_.forget(region, at);
    if (region->is_shared(at)) {
      region->set_shared(at, false);
      statistics_.shared_bytes -= sub;
    }
    if (region->is_mapped(at)) {
      region->set_mapped(at, false);
      statistics_.own_bytes -= sub;
    }
  }
}

void Session::end_moving() {
  moving_.end();
  if (moving_thread_.runs()) moving_thread_.join();
}

}  // namespace pcow
