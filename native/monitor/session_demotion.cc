// The thread that demotes windows of an image's file (demotion.h), apart from faults and syncs.
#include <algorithm>
#include <chrono>

#include "attach/system_calls.h"
#include "monitor/session.h"

namespace pcow {
namespace {

constexpr uint64_t kPause = 3;  // times as long as a round has taken

}  // namespace

void Session::end_demotions() {
  {
    const std::lock_guard lock(demoting_);
    demoting_ended_ = true;
  }
  demoting_changed_.notify_one();
  if (demoting_thread_.runs()) demoting_thread_.join();
}

Result<void> Session::sync() {
  statistics_.syncs++;
  // Before the sync the kernel knows what is dirty; after it, the pages are clean and can be
  // dropped.
  const bool wanted = demotion_.look();
  auto synced = image_->sync();
  if (wanted) {
    const std::lock_guard lock(demoting_);
    demotions_wanted_ = true;
    demoting_changed_.notify_one();
  }
  return synced;
}

// The thread. A round takes all windows that are wanted by then. After it, the thread rests for
// several times as long.
void Session::demote() {
  std::unique_lock lock(demoting_);
  while (!demoting_ended_) {
    demoting_changed_.wait(lock, [this] { return demoting_ended_ || demotions_wanted_; });
    if (demoting_ended_) return;
    demotions_wanted_ = false;
    lock.unlock();
    const uint64_t began = monotonic_ns();
    const std::vector<uint64_t> windows = demotion_.take_wanted();
    if (zap(windows))
      for (const uint64_t window : windows) demotion_.demote(window);
    const auto rest = std::chrono::nanoseconds((monotonic_ns() - began) * kPause);
    lock.lock();
    demoting_changed_.wait_for(lock, rest, [this] { return demoting_ended_; });
  }
}

// Takes the windows' pages out of the page tables. Their mappings stay, and accessing them gets the
// page of the cache again, so the session's records stay right. One chunk at a time, so that faults
// and snapshots need not wait longer. Returns false if a snapshot is in progress.
bool Session::zap(const std::vector<uint64_t>& windows) {
  std::vector<std::pair<size_t, uint64_t>> chunks;  // number of the region, start of the chunk
  {
    const Handling held(this);
    for (size_t i = 0; i < regions_.size(); i++)
      for (const uint64_t start : regions_[i]->chunk_starts()) chunks.emplace_back(i, start);
  }
  for (const auto& [number, start] : chunks) {
    if (step_ != Step::kNone) return false;
    const Handling held(this);
    if (number < regions_.size()) zap_chunk(*regions_[number], start, windows);
  }
  return true;
}

void Session::zap_chunk(const Region& region, uint64_t start,
                        const std::vector<uint64_t>& windows) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t end = std::min(start + geometry_.chunk_size(), region.end());
  for (uint64_t at = std::max(start, region.offset()); at < end;) {
    const auto next = [&](uint64_t offset) { return std::min(end, offset / sub * sub + sub); };
    const auto extent = region.is_mapped(at) ? image_->held(at) : Extent{};
    if (!extent || !extent->length) {
      at = next(at);
      continue;
    }
    const uint64_t place = extent->file_offset + (at - extent->offset);
    const uint64_t window = place / Demotion::kWindow;
    // To the end of the run, or of its part in this window.
    const uint64_t to = std::min(
        {end, extent->offset + extent->length, at + ((window + 1) * Demotion::kWindow - place)});
    uint64_t mapped_to = next(at);
    while (mapped_to < to && region.is_mapped(mapped_to)) mapped_to = next(mapped_to);
    mapped_to = std::min(mapped_to, to);
    // The pages of a shared mapping of a file are in the page cache, dirty or not: none is lost.
    // madvise(2)
    if (std::binary_search(windows.begin(), windows.end(), window))
      (void)system_madvise(region.at(at), mapped_to - at, MADV_DONTNEED);
    at = mapped_to;
  }
}

}  // namespace pcow
