#include "store/shared_segment.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/mman.h>

#include <cerrno>
#include <string>

#include "attach/system_calls.h"

namespace pcow {

using protocol::Descriptor;

namespace {

using segment::kLargePage;

constexpr uint64_t kSlicesOfPage = kLargePage / segment::kSliceSize;
// As in <sys/mman.h> of newer C libraries. Linux 6.1
constexpr int kMadvCollapse = 25;

// Maps the whole segment, aligned for large pages. Null if that fails.
char* map_whole(const Descriptor& memory) {
  const size_t roomy = segment::kLength + kLargePage;
  void* room =
      system_mmap(nullptr, roomy, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  const auto from = reinterpret_cast<uintptr_t>(room);
  const uintptr_t start = (from + kLargePage - 1) / kLargePage * kLargePage;
  void* content = system_mmap(reinterpret_cast<void*>(start), segment::kLength,
                              PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.number(), 0);
  const int err = errno;
  const uintptr_t end = start + (content == MAP_FAILED ? 0 : segment::kLength);
  if (start > from) system_munmap(room, start - from);
  if (from + roomy > end) system_munmap(reinterpret_cast<void*>(end), from + roomy - end);
  errno = err;
  return content == MAP_FAILED ? nullptr : static_cast<char*>(content);
}

// Not /proc/self: this thread has its own table of descriptors.
std::string name_of(const Descriptor& memory) {
  return "/proc/thread-self/fd/" + std::to_string(memory.number());
}

}  // namespace

SharedSegment::SharedSegment(Descriptor memory, char* content, int watch)
    : memory_(std::move(memory)),
      content_(content),
      filled_(reinterpret_cast<segment::Filled*>(content + segment::kContent)),
      watch_(watch) {}

Result<std::unique_ptr<SharedSegment>> SharedSegment::make(int ends) {
  Descriptor memory(memfd_create("pcow-clean-store", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory || ftruncate(memory.number(), segment::kLength) < 0)
    return system_error(errno, "cannot make shared memory for the clean store");
  char* const content = map_whole(memory);
  if (!content) return system_error(errno, "cannot map the shared memory of the clean store");
  // After the mapping, which stays writable.
  if (fcntl(memory.number(), F_ADD_SEALS, segment::kSeals) < 0) {
    const int err = errno;
    system_munmap(content, segment::kLength);
    return system_error(
        err, "cannot seal the shared memory of the clean store (Linux 5.1 or newer is needed)");
  }
  const int watch = inotify_add_watch(ends, name_of(memory).c_str(), IN_DELETE_SELF);
  if (watch < 0) {
    const int err = errno;
    system_munmap(content, segment::kLength);
    return system_error(err, "cannot watch the shared memory of the clean store");
  }
  return std::unique_ptr<SharedSegment>(new SharedSegment(std::move(memory), content, watch));
}

SharedSegment::~SharedSegment() { system_munmap(content_, segment::kLength); }

// The kernel makes a large page only where there is a small one already. One call for all, because
// each waits for every processor.
void SharedSegment::enlarge_pages(uint64_t first, uint64_t count) {
  uint64_t end = (first + kSlicesOfPage - 1) / kSlicesOfPage * kSlicesOfPage;
  const uint64_t from = end;
  const auto is_whole = [&](uint64_t slice) {
    if (slice + kSlicesOfPage > first + count) return false;
    for (uint64_t i = 0; i < kSlicesOfPage; i++)
      if (is_filled(slice + i)) return false;
    return system_madvise(at(slice), 4096, MADV_POPULATE_WRITE) == 0;
  };
  while (is_whole(end)) end += kSlicesOfPage;
  if (end > from) system_madvise(at(from), (end - from) * segment::kSliceSize, kMadvCollapse);
}

void SharedSegment::filled(uint64_t slice) {
  (*filled_)[slice / 64].fetch_or(uint64_t{1} << (slice % 64), std::memory_order_release);
  // The pages stay in the memfd. Only this process need not have them in its page tables.
  system_madvise(at(slice), segment::kSliceSize, MADV_DONTNEED);
}

// A description of its own for each receiver, so that is_held() sees it. O_NONBLOCK: whoever has
// the segment might hold a lease on it (fcntl(2)), and keep this call waiting.
Descriptor SharedSegment::for_reading() const {
  return Descriptor(open(name_of(memory_).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
}

// The kernel grants a lease for writing only if nobody else has the file open, and a mapping counts
// as an opening (fcntl(2), F_SETLEASE). `memory_` itself does not count: memfd_create opened it.
bool SharedSegment::is_held() const {
  const Descriptor probe = for_reading();
  return !probe || fcntl(probe.number(), F_SETLEASE, F_WRLCK) < 0;
}

}  // namespace pcow
