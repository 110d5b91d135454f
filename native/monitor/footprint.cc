#include "monitor/footprint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>

namespace pcow::footprint {
namespace {

constexpr size_t kMostRanges = 256;
constexpr size_t kMostFiles = 256;
constexpr unsigned kUniqueMountId =
    // STATX_MNT_ID_UNIQUE, Linux 6.8: the headers of a distribution are often older than its kernel
    0x4000;

struct Copy {
  std::atomic<size_t> ranges{0};
  std::array<std::atomic<uintptr_t>, kMostRanges> from{};
  std::array<std::atomic<uintptr_t>, kMostRanges> to{};
  std::atomic<bool> any_file{false};  // there are more files than fit: any file may be one
  std::atomic<size_t> files{0};
  std::array<std::atomic<uint64_t>, kMostFiles> mount{};
  std::array<std::atomic<uint64_t>, kMostFiles> inode{};
};

// Copy `version % 2` is the one to read. The publisher fills the other copy, and then increments
// the version. A reader that sees the version change while it looks may have read a copy that is
// being filled again, so it looks once more. No thread waits.
std::atomic<uint64_t> version{0};
std::array<Copy, 2> copies;

template <typename Look>
bool look(const Look& look_at) {
  for (;;) {
    const uint64_t before = version.load(std::memory_order_acquire);
    const bool found = look_at(copies[before % 2]);
    if (version.load(std::memory_order_relaxed) == before) return found;
  }
}

// Sorts and joins the ranges. If there are too many, the smallest gaps between them are included.
void fit(std::vector<Range>* ranges) {
  std::sort(ranges->begin(), ranges->end(),
            [](const Range& a, const Range& b) { return a.from < b.from; });
  const auto join = [&](size_t at) {
    (*ranges)[at].to = std::max((*ranges)[at].to, (*ranges)[at + 1].to);
    ranges->erase(ranges->begin() + static_cast<ptrdiff_t>(at) + 1);
  };
  for (size_t i = 0; i + 1 < ranges->size();) {
    if ((*ranges)[i].to >= (*ranges)[i + 1].from) {
      join(i);
    } else {
      i++;
    }
  }
  while (ranges->size() > kMostRanges) {
    size_t closest = 0;
    const auto gap = [&](size_t i) { return (*ranges)[i + 1].from - (*ranges)[i].to; };
    for (size_t i = 1; i + 1 < ranges->size(); i++)
      if (gap(i) < gap(closest)) closest = i;
    join(closest);
  }
}

}  // namespace

bool identify(int descriptor, OpenFile* file) {
  struct statx found;
  if (syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
              STATX_INO | kUniqueMountId, &found) < 0)
    return false;
  if (!(found.stx_mask & kUniqueMountId) &&
      syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
              STATX_INO | STATX_MNT_ID, &found) < 0)
    return false;
  *file = {found.stx_mnt_id, found.stx_ino};
  return true;
}

bool holds(const void* address, size_t length) {
  const auto from = reinterpret_cast<uintptr_t>(address);
  const uintptr_t to = from + length;
  return look([&](const Copy& copy) {
    const size_t count = std::min(copy.ranges.load(std::memory_order_acquire), kMostRanges);
    for (size_t i = 0; i < count; i++)
      if (from < copy.to[i].load(std::memory_order_acquire) &&
          copy.from[i].load(std::memory_order_acquire) < to)
        return true;
    return false;
  });
}

bool holds(const OpenFile& file) {
  return look([&](const Copy& copy) {
    if (copy.any_file.load(std::memory_order_acquire)) return true;
    const size_t count = std::min(copy.files.load(std::memory_order_acquire), kMostFiles);
    for (size_t i = 0; i < count; i++)
      if (copy.inode[i].load(std::memory_order_acquire) == file.inode &&
          copy.mount[i].load(std::memory_order_acquire) == file.mount)
        return true;
    return false;
  });
}

bool is_empty() {
  return !look([](const Copy& copy) {
    return copy.files.load(std::memory_order_acquire) != 0 ||
           copy.ranges.load(std::memory_order_acquire) != 0;
  });
}

void publish(std::vector<Range> ranges, const std::vector<OpenFile>& files) {
  fit(&ranges);
  const uint64_t next = version.load(std::memory_order_relaxed) + 1;
  Copy& copy = copies[next % 2];
  // A reader that still looks at this copy must see the version change if it sees any of the
  // following stores. Each store releases the version that was stored before, and each load in
  // look() acquires it.
  for (size_t i = 0; i < ranges.size(); i++) {
    copy.from[i].store(ranges[i].from, std::memory_order_release);
    copy.to[i].store(ranges[i].to, std::memory_order_release);
  }
  copy.ranges.store(ranges.size(), std::memory_order_release);
  copy.any_file.store(files.size() > kMostFiles, std::memory_order_release);
  for (size_t i = 0; i < std::min(files.size(), kMostFiles); i++) {
    copy.mount[i].store(files[i].mount, std::memory_order_release);
    copy.inode[i].store(files[i].inode, std::memory_order_release);
  }
  copy.files.store(files.size(), std::memory_order_release);
  version.store(next, std::memory_order_release);
}

void clear() { publish({}, {}); }

}  // namespace pcow::footprint
