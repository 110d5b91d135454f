// The functions of the C library that the preloaded monitor interposes. Each looks whether the call is about a flat file of
// a Pcow mount, or memory that is one's mapping; everything else goes straight to the kernel.
//
// Threads: all of them, at any time, also before main. The registry's lock is never held while guest memory is touched.

// Both names of each function are defined here, so the headers must not make one of two (off_t has 64 bits anyway).
#undef _FILE_OFFSET_BITS

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "attachment.h"
#include "inside.h"
#include "log.h"
#include "protocol.h"
#include "system_calls.h"

namespace {

using pcow::Attachment;
using pcow::Error;
using pcow::Session;

constexpr size_t kPage = 4096;

// An open flat file without a question to its filesystem, which may be a mount that has died.
struct FlatFile {
  uint64_t mount = 0;
  uint64_t inode = 0;
  friend bool operator==(const FlatFile&, const FlatFile&) = default;
};

bool identify(int descriptor, FlatFile* file) {
  struct statx found;
  if (syscall(SYS_statx, descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_MNT_ID, &found) < 0)
    return false;
  *file = {found.stx_mnt_id, found.stx_ino};
  return true;
}

struct Attached {
  FlatFile file;
  std::shared_ptr<Attachment> attachment;
};

// Held over everything that changes which images are attached: nobody maps an image that another thread is letting go.
std::recursive_mutex& changing() {
  static auto* made = new std::recursive_mutex;
  return *made;
}

// Never destroyed: threads may come here until the very end of the process.
struct Registry {
  std::mutex mutex;
  std::vector<Attached> attached;
};
Registry& registry() {
  static auto* made = new Registry;
  return *made;
}
// So that a process without any attached image pays one load.
std::atomic<size_t> attached_count{0};

std::vector<Attached> all_attached() {
  if (attached_count.load(std::memory_order_acquire) == 0) return {};
  const std::lock_guard lock(registry().mutex);
  return registry().attached;
}

std::shared_ptr<Session> session_in(const Attached& attached) {
  return {attached.attachment, &attached.attachment->session()};
}

std::shared_ptr<Session> session_of(int descriptor) {
  FlatFile file;
  if (attached_count.load(std::memory_order_acquire) == 0 || !identify(descriptor, &file)) return nullptr;
  for (const Attached& each : all_attached())
    if (each.file == file) return session_in(each);
  return nullptr;
}

std::shared_ptr<Session> session_at(const void* address, size_t length) {
  for (const Attached& each : all_attached())
    if (each.attachment->session().overlaps(address, length)) return session_in(each);
  return nullptr;
}

uint64_t number_from_environment(const char* name, uint64_t fallback) {
  const char* text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : fallback;
}

uint64_t read_number(const char* path, uint64_t fallback) {
  std::ifstream file(path);
  uint64_t number;
  return file >> number ? number : fallback;
}

Session::Limits limits() {
  const auto memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t mappings = read_number("/proc/sys/vm/max_map_count", 65530);
  // The rest is for the application, and for runs that meet at a limit of a mapping call.
  return {number_from_environment("PCOW_CLEAN_CACHE", memory / 4),
          number_from_environment("PCOW_MAPPING_BUDGET", mappings / 4 * 3)};
}

void* fail(int err) {
  errno = err;
  return MAP_FAILED;
}

// A fork in the middle of anything: the child is told with every lock held that guards what it looks at.
void before_fork() {
  const pcow::Inside inside;
  changing().lock();
  registry().mutex.lock();
  for (const Attached& each : registry().attached) each.attachment->session().lock_for_fork();
}

void after_fork_in_parent() {
  for (const Attached& each : registry().attached) each.attachment->session().unlock_after_fork();
  registry().mutex.unlock();
  changing().unlock();
}

// The mappings and the image are the parent's. What the child touches of them is an error, not zeros.
void after_fork_in_child() {
  const pcow::Inside inside;
  for (const Attached& each : registry().attached) each.attachment->forget_in_child();
  // Not destroyed: their threads are the parent's alone.
  (void)new std::vector<Attached>(std::exchange(registry().attached, {}));
  attached_count = 0;
  registry().mutex.unlock();
  changing().unlock();
}

// At exit(3): sync, and leave the image clean. A process that is killed leaves it as it is, and nothing is lost either.
__attribute__((destructor)) void close_all() {
  const pcow::Inside inside;
  for (const Attached& each : all_attached()) each.attachment->detach();
}

void let_go(const std::shared_ptr<Attachment>& attachment) {
  {
    const std::lock_guard lock(registry().mutex);
    std::erase_if(registry().attached, [&](const Attached& other) { return other.attachment == attachment; });
    attached_count = registry().attached.size();
  }
  attachment->detach();
}

void unmap_everywhere(void* address, size_t length) {
  for (const Attached& each : all_attached()) {
    Session& session = each.attachment->session();
    if (!session.overlaps(address, length)) continue;
    const std::lock_guard lock(changing());
    if (session.unmap(address, length)) let_go(each.attachment);
  }
}

// A shared mapping of a flat file, at the socket of its mount.
void* map_flat_file(const char* socket_path, void* address, size_t length, int protection, int flags, int descriptor,
                    off_t offset) {
  if (flags & MAP_SYNC) return fail(EOPNOTSUPP);  // the image's filesystem is not DAX: mmap(2)
  if (length == 0 || offset < 0 || static_cast<uint64_t>(offset) % kPage) return fail(EINVAL);
  length = (length + kPage - 1) / kPage * kPage;
  const int access = fcntl(descriptor, F_GETFL) & O_ACCMODE;
  if (access == O_WRONLY || ((protection & PROT_WRITE) && access != O_RDWR)) return fail(EACCES);
  FlatFile file;
  if (!identify(descriptor, &file)) return fail(errno);
  static const int forks_watched = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  if (forks_watched) return fail(forks_watched);

  // One thread at a time: two mappings of one file share a session.
  const std::lock_guard one_by_one(changing());
  // What is replaced goes first: it may be the last mapping of this very file.
  if (flags & MAP_FIXED) unmap_everywhere(address, length);
  std::shared_ptr<Session> session = session_of(descriptor);
  const bool write = (protection & PROT_WRITE) != 0;
  if (session && write && !session->writable()) {
    pcow::log_notice(session->image().info().path + " is mapped for reading only in this process; unmap that first");
    return fail(EBUSY);
  }
  if (!session) {
    auto attachment = Attachment::attach(socket_path, descriptor, write, limits());
    if (!attachment) {
      pcow::log_notice("cannot attach: " + attachment.error().message);
      return fail(attachment.error().err);
    }
    const std::lock_guard lock(registry().mutex);
    registry().attached.push_back({file, *attachment});
    attached_count = registry().attached.size();
    session = session_in(registry().attached.back());
  }
  // An image of which nothing came to be mapped after all is let go.
  struct LetGo {
    FlatFile file;
    ~LetGo() {
      for (const Attached& each : all_attached())
        if (each.file == file && each.attachment->session().is_idle()) let_go(each.attachment);
    }
  } const let_go_of_idle{file};

  // The kernel's own mapping first: it finds the place, and stays for what lies beyond the end of the image (SIGBUS, as on
  // any file). Over the rest comes the session's.
  void* whole = pcow::system_mmap(address, length, protection, flags, descriptor, offset);
  if (whole == MAP_FAILED) return MAP_FAILED;
  const uint64_t size = (session->image().size() + kPage - 1) / kPage * kPage;
  if (static_cast<uint64_t>(offset) >= size) return whole;
  const size_t inside = std::min<uint64_t>(length, size - static_cast<uint64_t>(offset));
  auto mapped = session->map(whole, true, inside, protection, static_cast<uint64_t>(offset));
  if (!mapped) {
    pcow::log_notice(session->image().info().path + ": " + mapped.error().message);
    pcow::system_munmap(whole, length);
    return fail(mapped.error().err);
  }
  pcow::log_detail("took over " + std::to_string(inside) + " bytes of " + session->image().info().path);
  return whole;
}

void* map(void* address, size_t length, int protection, int flags, int descriptor, off_t offset) {
  if (pcow::Inside::active()) return pcow::system_mmap(address, length, protection, flags, descriptor, offset);
  const pcow::Inside inside;
  const int type = flags & MAP_TYPE;
  if (descriptor >= 0 && !(flags & MAP_ANONYMOUS) && (type == MAP_SHARED || type == MAP_SHARED_VALIDATE)) {
    char path[128];
    const int err = errno;
    const ssize_t count = fgetxattr(descriptor, pcow::protocol::kAttribute, path, sizeof path - 1);
    errno = err;
    if (count > 0) {
      path[count] = 0;
      return map_flat_file(path, address, length, protection, flags, descriptor, offset);
    }
  }
  if ((flags & MAP_FIXED) && attached_count.load(std::memory_order_acquire)) unmap_everywhere(address, length);
  return pcow::system_mmap(address, length, protection, flags, descriptor, offset);
}

int outcome_of(const pcow::Result<void>& result) {
  if (result) return 0;
  pcow::log_notice(result.error().message);
  errno = result.error().err;
  return -1;
}

int allocate(int descriptor, int mode, off_t offset, off_t length) {
  const auto session = pcow::Inside::active() ? nullptr : session_of(descriptor);
  if (!session) return static_cast<int>(syscall(SYS_fallocate, descriptor, mode, offset, length));
  const pcow::Inside inside;
  const bool zeroes =
      mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) || (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
  if (offset < 0 || length <= 0) {
    errno = EINVAL;
    return -1;
  }
  if (!zeroes) {
    errno = EOPNOTSUPP;
    return -1;
  }
  const uint64_t size = session->image().size();
  const auto from = std::min<uint64_t>(static_cast<uint64_t>(offset), size);
  return outcome_of(session->discard(from, std::min<uint64_t>(static_cast<uint64_t>(length), size - from)));
}

int advise(void* address, size_t length, int advice) {
  if (pcow::Inside::active()) return pcow::system_madvise(address, length, advice);
  const pcow::Inside inside;
  const auto session = session_at(address, length);
  if (!session) return pcow::system_madvise(address, length, advice);
  switch (advice) {
    case MADV_REMOVE: {
      uint64_t offset;
      uint64_t found;
      if (!session->find(address, length, &offset, &found)) break;
      return outcome_of(session->discard(offset, found));
    }
    case MADV_FREE:
    case MADV_WIPEONFORK:
      errno = EINVAL;  // as for every shared mapping of a file
      return -1;
    // Advice about anonymous memory, or flags that would split our mappings apart: nothing to do for a file.
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_DONTDUMP:
    case MADV_DODUMP: return 0;
    default: break;
  }
  return pcow::system_madvise(address, length, advice);
}

}  // namespace

#define PCOW_HOOK extern "C" __attribute__((visibility("default")))

PCOW_HOOK void* mmap(void* address, size_t length, int protection, int flags, int descriptor, off_t offset) noexcept {
  return map(address, length, protection, flags, descriptor, offset);
}

PCOW_HOOK void* mmap64(void* address, size_t length, int protection, int flags, int descriptor,
                       off64_t offset) noexcept {
  return map(address, length, protection, flags, descriptor, offset);
}

PCOW_HOOK int munmap(void* address, size_t length) noexcept {
  if (length == 0 || reinterpret_cast<uintptr_t>(address) % kPage) {
    errno = EINVAL;
    return -1;
  }
  if (pcow::Inside::active()) return pcow::system_munmap(address, length);
  const pcow::Inside inside;
  length = (length + kPage - 1) / kPage * kPage;
  unmap_everywhere(address, length);
  return pcow::system_munmap(address, length);
}

PCOW_HOOK void* mremap(void* old, size_t old_length, size_t length, int flags, ...) noexcept {
  void* target = nullptr;
  if (flags & MREMAP_FIXED) {
    va_list rest;
    va_start(rest, flags);
    target = va_arg(rest, void*);
    va_end(rest);
  }
  if (pcow::Inside::active()) return pcow::system_mremap(old, old_length, length, flags, target);
  const pcow::Inside inside;
  if (!session_at(old, old_length)) {
    if (flags & MREMAP_FIXED) unmap_everywhere(target, length);
    return pcow::system_mremap(old, old_length, length, flags, target);
  }
  // Shrinking in place is cutting off the end; a mapping that serves a guest is not moved, and a file's end not passed.
  if (length > old_length || (flags & MREMAP_FIXED) || length == 0) return fail(length == 0 ? EINVAL : ENOMEM);
  if (length < old_length) unmap_everywhere(static_cast<char*>(old) + length, old_length - length);
  return old;
}

PCOW_HOOK int madvise(void* address, size_t length, int advice) noexcept { return advise(address, length, advice); }

PCOW_HOOK int mprotect(void* address, size_t length, int protection) noexcept {
  // The kernel checks the arguments, and changes what lies around our mappings.
  if (pcow::system_mprotect(address, length, protection) < 0) return -1;
  if (pcow::Inside::active() || attached_count.load(std::memory_order_acquire) == 0) return 0;
  const pcow::Inside inside;
  for (const Attached& each : all_attached()) {
    Session& session = each.attachment->session();
    if (!session.overlaps(address, length)) continue;
    if (const int outcome = outcome_of(session.protect(address, length, protection))) return outcome;
  }
  return 0;
}

PCOW_HOOK int msync(void* address, size_t length, int flags) {
  if (pcow::Inside::active()) return static_cast<int>(syscall(SYS_msync, address, length, flags));
  const pcow::Inside inside;
  const auto session = session_at(address, length);
  if (!session) return static_cast<int>(syscall(SYS_msync, address, length, flags));
  // The kernel checks the arguments; what MS_SYNC promises is the engine's to do.
  if (syscall(SYS_msync, address, length, flags & ~MS_SYNC) < 0) return -1;
  return (flags & MS_SYNC) ? outcome_of(session->sync()) : 0;
}

PCOW_HOOK int fsync(int descriptor) {
  const auto session = pcow::Inside::active() ? nullptr : session_of(descriptor);
  const pcow::Inside inside;
  return session ? outcome_of(session->sync()) : static_cast<int>(syscall(SYS_fsync, descriptor));
}

PCOW_HOOK int fdatasync(int descriptor) {
  const auto session = pcow::Inside::active() ? nullptr : session_of(descriptor);
  const pcow::Inside inside;
  return session ? outcome_of(session->sync()) : static_cast<int>(syscall(SYS_fdatasync, descriptor));
}

PCOW_HOOK int fallocate(int descriptor, int mode, off_t offset, off_t length) {
  return allocate(descriptor, mode, offset, length);
}

PCOW_HOOK int fallocate64(int descriptor, int mode, off64_t offset, off64_t length) {
  return allocate(descriptor, mode, offset, length);
}

// Locked pages would all have to be the image's own: what a file may answer where the limit is too low, mlock(2).
PCOW_HOOK int mlock(const void* address, size_t length) noexcept {
  if (pcow::Inside::active()) return static_cast<int>(syscall(SYS_mlock, address, length));
  const pcow::Inside inside;
  if (!session_at(address, length)) return static_cast<int>(syscall(SYS_mlock, address, length));
  errno = ENOMEM;
  return -1;
}
