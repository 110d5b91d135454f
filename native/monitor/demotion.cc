#include "monitor/demotion.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace pcow {
namespace {

constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kPagesOfWindow = Demotion::kWindow / kSmallPage;
constexpr uint64_t kManyPages = 8;          // dirty pages: more than a store or two explain
constexpr uint64_t kMostDirtyWindows = 32;  // of one sync; with more, the image is written in bulk
// A window is wanted when it has this many points. A window that is dirty at a sync gets one point,
// because a writer may be going through it. It gets four if the sync before found no dirty pages in
// it or directly before it, and all points if many windows have been rightly demoted.
constexpr uint64_t kWanted = 8;
constexpr uint64_t kPoints = 4;
constexpr uint64_t kRightlyDemoted = 8;
constexpr uint64_t kShare = 50;       // checking takes one part in this many of the time
constexpr int kSamples = 4;           // demoted windows of one check
constexpr uint8_t kUnsuccessful = 3;  // unsuccessful demotions of one window
constexpr uint64_t kQuietNs = 30'000'000'000;
// Bytes. The kernel takes no more than the device's readahead at once.
constexpr uint64_t kReadStep = uint64_t{128} << 10;

#ifndef SYS_cachestat
#define SYS_cachestat 451  // of <asm/unistd.h> since Linux 6.5, the same number everywhere
#endif

// Whether the file is in a filesystem that keeps its files in memory: their pages are never
// dropped.
bool is_in_memory(int descriptor) {
  struct statfs type;
  return fstatfs(descriptor, &type) < 0 || type.f_type == TMPFS_MAGIC;
}

}  // namespace

Demotion::Demotion(const Image* image, bool useful, bool always, Statistics* statistics)
    : image_(image),
      always_(always),
      statistics_(statistics),
      usable_(useful && kernel_can_tell()) {}

bool Demotion::kernel_can_tell() const {
  Pages pages;
  return (always_ || !is_in_memory(image_->descriptor())) && ask(0, kWindow, &pages);
}

// Returns false if the kernel cannot tell.
bool Demotion::ask(uint64_t from, uint64_t to, Pages* pages) const {
  struct {
    uint64_t offset, length;
  } const range = {from, to - from};
  struct {
    uint64_t cached, dirty, written_back, evicted, recently_evicted;
  } found;
  if (syscall(SYS_cachestat, image_->descriptor(), &range, &found, 0) < 0) return false;
  *pages = {found.cached, found.dirty + found.written_back};
  return true;
}

// Finds the windows of [first, end) with many dirty pages, by halves: where little is dirty, few
// questions are asked.
void Demotion::find_dirty(uint64_t first, uint64_t end, std::vector<uint64_t>* dirty) const {
  Pages pages;
  if (first >= end || dirty->size() > kMostDirtyWindows) return;
  if (!ask(first * kWindow, end * kWindow, &pages) ||
      (always_ ? pages.cached == 0 : pages.dirty < kManyPages))
    return;
  if (end - first == 1) {
    dirty->push_back(first);
    return;
  }
  const uint64_t middle = first + (end - first) / 2;
  find_dirty(first, middle, dirty);
  find_dirty(middle, end, dirty);
}

// Only windows that have not been demoted, because asking about small pages takes long.
std::vector<uint64_t> Demotion::dirty_windows() const {
  std::vector<uint64_t> dirty;
  struct stat status;
  if (fstat(image_->descriptor(), &status) < 0) return dirty;
  const uint64_t end = (static_cast<uint64_t>(status.st_size) + kWindow - 1) / kWindow;
  uint64_t first = 0;
  for (const auto& [number, window] : windows_) {
    if (!window.small || always_) continue;
    find_dirty(first, std::min(number, end), &dirty);
    first = number + 1;
  }
  find_dirty(first, end, &dirty);
  return dirty;
}

bool Demotion::look() {
  // If another sync is checking, this one does without.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !usable_) return false;
  const uint64_t began = monotonic_ns();
  if (!always_ && (began < next_look_ns_ || began < quiet_until_ns_)) return !wanted_.empty();
  note(dirty_windows());
  sample_demoted();
  const uint64_t now = monotonic_ns();
  next_look_ns_ = now + (now - began) * kShare;
  return !wanted_.empty();
}

void Demotion::note(std::vector<uint64_t> dirty) {
  const std::vector<uint64_t> before = std::exchange(dirty_before_, std::move(dirty));
  if (dirty_before_.size() > kMostDirtyWindows && !always_) return;
  for (const uint64_t number : dirty_before_) {
    const auto was_dirty = [&](uint64_t window) {
      return std::binary_search(before.begin(), before.end(), window);
    };
    const bool follows = was_dirty(number) || (number > 0 && was_dirty(number - 1));
    Window& window = windows_[number];
    window.points += follows ? 1 : rightly_demoted_ < kRightlyDemoted ? kPoints : kWanted;
    if (window.points < kWanted && !always_) continue;
    if (std::find(wanted_.begin(), wanted_.end(), number) == wanted_.end())
      wanted_.push_back(number);
  }
}

// What a sync is about to write of demoted windows, a few of them in turn. If most of a window is
// dirty, its folios are large again (the kernel had dropped its pages, or the blocks have been
// reused), or it is written in bulk.
void Demotion::sample_demoted() {
  auto at = windows_.lower_bound(next_sample_);
  int samples = 0;
  for (size_t seen = 0;
       seen < std::min<size_t>(windows_.size(), 4 * kSamples) && samples < kSamples; seen++, ++at) {
    if (at == windows_.end()) at = windows_.begin();
    auto& [number, window] = *at;
    next_sample_ = number + 1;
    if (!window.small) continue;
    samples++;
    Pages pages;
    if (!ask(number * kWindow, (number + 1) * kWindow, &pages) || pages.dirty < kPagesOfWindow / 2)
      continue;
    window.small = false;
    if (window.demotions < kUnsuccessful) continue;
    window.demotions = 0;
    rightly_demoted_ = 0;
    quiet_until_ns_ = monotonic_ns() + kQuietNs;
    wanted_.clear();
  }
}

std::vector<uint64_t> Demotion::take_wanted() {
  const std::lock_guard lock(mutex_);
  std::vector<uint64_t> taken = std::exchange(wanted_, {});
  std::sort(taken.begin(), taken.end());
  return taken;
}

void Demotion::demote(uint64_t window) {
  const int file = image_->descriptor();
  const uint64_t from = window * kWindow;
  // Both are advice to the kernel: a failure changes nothing.
  (void)posix_fadvise(file, static_cast<off_t>(from), static_cast<off_t>(kWindow),
                      POSIX_FADV_DONTNEED);
  Pages left;
  const bool known = ask(from, from + kWindow, &left);
  // What is read because of this advice comes in single pages, whatever the size of the range.
  for (uint64_t at = from; at < from + kWindow; at += kReadStep)
    (void)posix_fadvise(file, static_cast<off_t>(at), static_cast<off_t>(kReadStep),
                        POSIX_FADV_WILLNEED);
  const std::lock_guard lock(mutex_);
  Window& state = windows_[window];
  state.points = 0;
  // the window is in use, and will be checked again
  if (!known || left.cached >= kManyPages) return;
  state.small = true;
  state.demotions++;
  rightly_demoted_++;
  statistics_->demotions++;
}

}  // namespace pcow
