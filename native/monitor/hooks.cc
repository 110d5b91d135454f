// The functions of the C library that the preloaded monitor interposes. Each checks whether the
// call is about a flat file of a Pcow mount, or about memory that is a mapping of one. All other
// calls go straight to the kernel, without our allocator or locks (footprint.h). For images, the
// monitor's own threads (threads.h) do the work, through the registry.
// Threads: any thread of the application, at any time; also before main, in signal handlers, and
// inside its allocator.
//
// One file, because it is a list: each function is short, and all of them follow the same pattern.
// inside its allocator.

// Both names of each function (with and without "64") are defined here, so the headers must not
// redirect one to the other. off_t has 64 bits in any case.
#undef _FILE_OFFSET_BITS

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#include <cerrno>
#include <cstdarg>
#include <optional>
#include <string>

#include "attach/protocol.h"
#include "attach/system_calls.h"
#include "engine/disk/bus_guard.h"
#include "monitor/direct_reads.h"
#include "monitor/footprint.h"
#include "monitor/inside.h"
#include "monitor/log.h"
#include "monitor/offer.h"
#include "monitor/registry.h"
#include "monitor/threads.h"

namespace {

using pcow::Registry;
using pcow::footprint::OpenFile;
namespace footprint = pcow::footprint;
namespace threads = pcow::threads;

constexpr size_t kPage = 4096;

size_t whole_pages(size_t length) { return (length + kPage - 1) / kPage * kPage; }

// Whether the call may be about an image of this process. A child of fork(2) has none, although it
// has copies of its parent's data.
bool concerns(const void* address, size_t length) {
  return !pcow::Inside::active() && footprint::holds(address, length) && threads::begun();
}

bool concerns(int descriptor, OpenFile* file) {
  return !pcow::Inside::active() && !footprint::is_empty() &&
         footprint::identify(descriptor, file) && footprint::holds(*file) && threads::begun();
}

// Runs `work` on a thread of the monitor. Its errno becomes the caller's; changes to errno by the
// wait are undone.
template <typename Work>
Registry::Outcome ask(const Work& work) {
  const int before = errno;
  const Registry::Outcome outcome = threads::run([&] { return work(Registry::instance()); });
  errno = outcome.err ? outcome.err : before;
  return outcome;
}

template <typename Work>
int ask_for_int(const Work& work) {
  return ask(work).err ? -1 : 0;
}

template <typename Work>
void* ask_for_address(const Work& work) {
  const Registry::Outcome outcome = ask(work);
  return outcome.err ? MAP_FAILED : outcome.address;
}

void* fail(int err) {
  errno = err;
  return MAP_FAILED;
}

// The function of the C library that is interposed here, for calls that are not about images: some
// of these functions are cancellation points, which only the library can implement. Null until the
// constructor has run.
template <typename Function>
Function* next_function(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int (*next_fsync)(int) = nullptr;
int (*next_fdatasync)(int) = nullptr;
int (*next_msync)(void*, size_t, int) = nullptr;
int (*next_fallocate)(int, int, off64_t, off64_t) = nullptr;
ssize_t (*next_read)(int, void*, size_t) = nullptr;
ssize_t (*next_pread)(int, void*, size_t, off64_t) = nullptr;
ssize_t (*next_readv)(int, const iovec*, int) = nullptr;
ssize_t (*next_preadv)(int, const iovec*, int, off64_t) = nullptr;
ssize_t (*next_preadv2)(int, const iovec*, int, off64_t, int) = nullptr;

__attribute__((constructor)) void find_next_functions() {
  next_fsync = next_function<int(int)>("fsync");
  next_fdatasync = next_function<int(int)>("fdatasync");
  next_msync = next_function<int(void*, size_t, int)>("msync");
  next_fallocate = next_function<int(int, int, off64_t, off64_t)>("fallocate64");
  next_read = next_function<ssize_t(int, void*, size_t)>("read");
  next_pread = next_function<ssize_t(int, void*, size_t, off64_t)>("pread64");
  next_readv = next_function<ssize_t(int, const iovec*, int)>("readv");
  next_preadv = next_function<ssize_t(int, const iovec*, int, off64_t)>("preadv64");
  next_preadv2 = next_function<ssize_t(int, const iovec*, int, off64_t, int)>("preadv64v2");
}

// In the child of fork(2): the kernel has given it neither the mappings (MADV_DONTFORK) nor the
// monitor's descriptors and threads.
void after_fork_in_child() {
  threads::forget();
  Registry::forget();
  footprint::clear();
}

// exit(3) makes the written data durable. The image stays attached until the kernel takes the
// memory down, because other threads and later destructors may still store into it. Then the mount
// takes the image back, as after a kill.
__attribute__((destructor)) void sync_all() {
  if (pcow::Inside::active() || footprint::is_empty() || !threads::begun()) return;
  ask([](Registry& registry) {
    registry.sync_all();
    return Registry::Outcome{};
  });
}

// Whether a file is a flat file of a Pcow mount, even of one that serves no monitors. Keeps errno.
bool is_flat_file(int descriptor) {
  char identity[64];
  const int before = errno;
  const ssize_t count =
      fgetxattr(descriptor, pcow::protocol::kImageAttribute, identity, sizeof identity);
  errno = before;
  return count > 0;
}

// The call of this thread, for the monitor's threads.
Registry::MapCall map_call(void* address, size_t length, int protection, int flags, int descriptor,
                           off_t offset) {
  return {address,
          whole_pages(length),
          protection,
          flags,
          descriptor,
          offset,
          static_cast<pid_t>(syscall(SYS_gettid))};
}

// Maps a file that may be a flat file, or that of a snapshot, shared. Returns nothing if it is
// neither, and for a snapshot that the monitor cannot map: it reads the same without the monitor.
std::optional<void*> map_if_flat(void* address, size_t length, int protection, int flags,
                                 int descriptor, off_t offset) {
  OpenFile file;
  pcow::Offer offer;
  const bool attached = concerns(descriptor, &file);
  const int unanswered = attached ? 0 : pcow::find_offer(descriptor, &offer);
  if (unanswered) return fail(unanswered);
  const auto fail = [&](int err) -> std::optional<void*> {
    return offer.layer ? std::nullopt : std::optional<void*>(::fail(err));
  };
  if (!attached && offer.socket.empty()) {
    if (!is_flat_file(descriptor)) return std::nullopt;
    pcow::log_notice(
        "cannot map a flat file: its mount serves no monitors (the mount's log and "
        "\".pcow/status\" say why)");
    return fail(ENODEV);
  }
  if (!footprint::identify(descriptor, &file)) return fail(errno);
  // as if too much memory were locked already: see mlock below
  if (flags & MAP_LOCKED) return fail(EAGAIN);
  if (length == 0 || offset < 0 || static_cast<uint64_t>(offset) % kPage) return fail(EINVAL);
  if ((flags & MAP_FIXED) && reinterpret_cast<uintptr_t>(address) % kPage) return fail(EINVAL);
  static const int fork_watched = pthread_atfork(nullptr, nullptr, after_fork_in_child);
  if (fork_watched) return fail(fork_watched);
  if (auto begun = threads::begin(); !begun) {
    pcow::log_notice(begun.error().message);
    return fail(begun.error().err);
  }
  const int access = fcntl(descriptor, F_GETFL) & O_ACCMODE;
  const auto call = map_call(address, length, protection, flags, descriptor, offset);
  void* const mapped = ask_for_address(
      [&](Registry& registry) { return registry.map_flat_file(offer, file, access, call); });
  return mapped == MAP_FAILED ? fail(errno) : mapped;
}

void* map(void* address, size_t length, int protection, int flags, int descriptor, off_t offset) {
  const auto plainly = [&] {
    return pcow::system_mmap(address, length, protection, flags, descriptor, offset);
  };
  if (pcow::Inside::active()) return plainly();
  const int type = flags & MAP_TYPE;
  if (descriptor >= 0 && !(flags & MAP_ANONYMOUS) &&
      (type == MAP_SHARED || type == MAP_SHARED_VALIDATE))
    if (const auto mapped = map_if_flat(address, length, protection, flags, descriptor, offset))
      return *mapped;
  if (!(flags & MAP_FIXED) || length == 0 || reinterpret_cast<uintptr_t>(address) % kPage ||
      !concerns(address, whole_pages(length)))
    return plainly();
  const auto call = map_call(address, length, protection, flags, descriptor, offset);
  return ask_for_address([&](Registry& registry) { return registry.map_over(call); });
}

// Whether the file is a flat file of an image of this process, but in another mount than the one
// through which the image was attached. Keeps errno.
bool is_another_name(int descriptor, OpenFile* file) {
  if (pcow::Inside::active() || footprint::is_empty() || !threads::begun()) return false;
  const int before = errno;
  const auto thread = static_cast<pid_t>(syscall(SYS_gettid));
  bool found = false;
  if (footprint::identify(descriptor, file))
    ask([&](Registry& registry) {
      found = registry.learn(*file, descriptor, thread);
      return Registry::Outcome{};
    });
  errno = before;
  return found;
}

// A cancellation point, as for every file, at its beginning.
int allocate(int descriptor, int mode, off_t offset, off_t length) {
  const auto plainly = [&] {
    return next_fallocate && !pcow::Inside::active()
               ? next_fallocate(descriptor, mode, offset, length)
               : static_cast<int>(syscall(SYS_fallocate, descriptor, mode, offset, length));
  };
  OpenFile file;
  if (!concerns(descriptor, &file)) {
    const int outcome = plainly();
    // The mount refuses direct changes while a process is attached. That process may be this one.
    if (outcome == 0 || errno != EBUSY || !is_another_name(descriptor, &file)) return outcome;
  }
  pthread_testcancel();
  const int flags = fcntl(descriptor, F_GETFL);
  const int access = flags & O_ACCMODE;
  if ((flags & O_PATH) || access == O_RDONLY) return errno = EBADF, -1;
  if (offset < 0 || length <= 0) return errno = EINVAL, -1;
  const bool zeroes = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) ||
                      (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
  if (!zeroes) return errno = EOPNOTSUPP, -1;
  bool ours = false;
  const int outcome = ask_for_int([&](Registry& registry) {
    Registry::Outcome done;
    ours = registry.discard_file(file, static_cast<uint64_t>(offset), static_cast<uint64_t>(length),
                                 &done);
    return done;
  });
  return ours ? outcome : plainly();
}

int advise(void* address, size_t length, int advice) {
  const auto plainly = [&] { return pcow::system_madvise(address, length, advice); };
  if (reinterpret_cast<uintptr_t>(address) % kPage || length == 0 ||
      !concerns(address, whole_pages(length)))
    return plainly();
  switch (advice) {
    case MADV_REMOVE:
      return ask_for_int(
          [&](Registry& registry) { return registry.remove_range(address, whole_pages(length)); });
    case MADV_FREE:
    case MADV_WIPEONFORK:
      return errno = EINVAL, -1;  // as for every shared mapping of a file
    // Advice about anonymous memory has no effect on a file. Flags would split our mappings. A
    // child does not get the mappings anyway.
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_DONTDUMP:
    case MADV_DODUMP: return 0;
    default: return plainly();
  }
}

// fsync and fdatasync of a flat file are cancellation points as for every file, at their beginning.
template <typename Next>
int sync_file(int descriptor, Next* next, long number) {
  OpenFile file;
  if (concerns(descriptor, &file)) {
    pthread_testcancel();
    bool ours = false;
    const int outcome = ask_for_int([&](Registry& registry) {
      Registry::Outcome done;
      ours = registry.sync_file(file, &done);
      return done;
    });
    if (ours) return outcome;
  }
  return next && !pcow::Inside::active() ? next(descriptor)
                                         : static_cast<int>(syscall(number, descriptor));
}

// Whether a read bypasses the page cache and goes directly into an image's memory (direct_reads.h).
bool reads_directly_into_image(int descriptor, const iovec* parts, int count) {
  if (pcow::Inside::active() || footprint::is_empty()) return false;
  for (int i = 0; i < count; i++)
    if (footprint::holds(parts[i].iov_base, parts[i].iov_len)) {
      const int flags = static_cast<int>(syscall(SYS_fcntl, descriptor, F_GETFL));
      return flags >= 0 && (flags & O_DIRECT);
    }
  return false;
}

template <typename Call>
ssize_t read_by(int descriptor, const iovec* parts, int count, const Call& call) {
  if (!reads_directly_into_image(descriptor, parts, count)) return call();
  const pcow::direct_reads::Read read;
  return call();
}

}  // namespace

#define PCOW_HOOK extern "C" __attribute__((visibility("default")))

PCOW_HOOK void* mmap(void* address, size_t length, int protection, int flags, int descriptor,
                     off_t offset) noexcept {
  return map(address, length, protection, flags, descriptor, offset);
}

PCOW_HOOK void* mmap64(void* address, size_t length, int protection, int flags, int descriptor,
                       off64_t offset) noexcept {
  return map(address, length, protection, flags, descriptor, offset);
}

PCOW_HOOK int munmap(void* address, size_t length) noexcept {
  if (reinterpret_cast<uintptr_t>(address) % kPage || length == 0 ||
      !concerns(address, whole_pages(length)))
    return pcow::system_munmap(address, length);
  return ask_for_int(
      [&](Registry& registry) { return registry.unmap(address, whole_pages(length)); });
}

PCOW_HOOK void* mremap(void* old, size_t old_length, size_t length, int flags, ...) noexcept {
  void* target = nullptr;
  if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
    va_list rest;
    va_start(rest, flags);
    target = va_arg(rest, void*);
    va_end(rest);
  }
  const auto plainly = [&] { return pcow::system_mremap(old, old_length, length, flags, target); };
  if (reinterpret_cast<uintptr_t>(old) % kPage || length == 0) return plainly();
  if (!concerns(old, old_length ? whole_pages(old_length) : kPage)) {
    if (!(flags & MREMAP_FIXED) || reinterpret_cast<uintptr_t>(target) % kPage ||
        !concerns(target, whole_pages(length)))
      return plainly();
    return ask_for_address([&](Registry& registry) {
      return registry.move_over(old, old_length, whole_pages(length), flags, target);
    });
  }
  // A second mapping of the same pages is not supported, because a snapshot would not take it down.
  // A mapping is not moved while it serves a guest, and not extended beyond the file's end.
  // Shrinking in place unmaps the end.
  if (old_length == 0 || (flags & MREMAP_DONTUNMAP)) return fail(EINVAL);
  if (whole_pages(length) > whole_pages(old_length) || (flags & MREMAP_FIXED)) return fail(ENOMEM);
  const size_t kept = whole_pages(length);
  if (kept == whole_pages(old_length)) return old;
  const int unmapped = ask_for_int([&](Registry& registry) {
    return registry.unmap(static_cast<char*>(old) + kept, whole_pages(old_length) - kept);
  });
  return unmapped < 0 ? MAP_FAILED : old;
}

PCOW_HOOK int madvise(void* address, size_t length, int advice) noexcept {
  return advise(address, length, advice);
}

PCOW_HOOK int mprotect(void* address, size_t length, int protection) noexcept {
  if (reinterpret_cast<uintptr_t>(address) % kPage || length == 0 ||
      !concerns(address, whole_pages(length)))
    return pcow::system_mprotect(address, length, protection);
  return ask_for_int([&](Registry& registry) {
    return registry.protect(address, whole_pages(length), protection);
  });
}

PCOW_HOOK int msync(void* address, size_t length, int flags) {
  const bool checked = reinterpret_cast<uintptr_t>(address) % kPage == 0 && length != 0;
  if (checked && concerns(address, whole_pages(length))) {
    pthread_testcancel();
    return ask_for_int([&](Registry& registry) {
      return registry.sync_range(address, whole_pages(length), flags);
    });
  }
  return next_msync && !pcow::Inside::active()
             ? next_msync(address, length, flags)
             : static_cast<int>(syscall(SYS_msync, address, length, flags));
}

PCOW_HOOK int fsync(int descriptor) { return sync_file(descriptor, next_fsync, SYS_fsync); }

PCOW_HOOK int fdatasync(int descriptor) {
  return sync_file(descriptor, next_fdatasync, SYS_fdatasync);
}

PCOW_HOOK int fallocate(int descriptor, int mode, off_t offset, off_t length) {
  return allocate(descriptor, mode, offset, length);
}

PCOW_HOOK int fallocate64(int descriptor, int mode, off64_t offset, off64_t length) {
  return allocate(descriptor, mode, offset, length);
}

// The engine handles SIGBUS for its own mappings first (engine/disk/bus_guard.h). The program's
// action is kept, and used for all other addresses, whichever of the two was installed first.
PCOW_HOOK int sigaction(int number, const struct sigaction* action,
                        struct sigaction* before) noexcept {
  using Function = int (*)(int, const struct sigaction*, struct sigaction*);
  static const auto next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "sigaction"));
  if (number == SIGBUS && pcow::exchange_bus_action(action, before)) return 0;
  return next(number, action, before);
}

PCOW_HOOK sighandler_t signal(int number, sighandler_t handler) noexcept {
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;  // as the C library's signal(3)
  sigemptyset(&action.sa_mask);
  sigaddset(&action.sa_mask, number);
  return sigaction(number, &action, &before) == 0 ? before.sa_handler : SIG_ERR;
}

// Locking the pages would require that the image holds all of them. The calls fail as if the limit
// were too low: mlock(2).
PCOW_HOOK int mlock(const void* address, size_t length) noexcept {
  if (!concerns(address, length)) return static_cast<int>(syscall(SYS_mlock, address, length));
  return errno = ENOMEM, -1;
}

PCOW_HOOK int mlock2(const void* address, size_t length, unsigned flags) noexcept {
  if (!concerns(address, length))
    return static_cast<int>(syscall(SYS_mlock2, address, length, flags));
  return errno = ENOMEM, -1;
}

// Pages in a different order are not supported for a mapping of a block format.
PCOW_HOOK int remap_file_pages(void* address, size_t length, int protection, size_t page,
                               int flags) noexcept {
  if (!concerns(address, length))
    return static_cast<int>(
        syscall(SYS_remap_file_pages, address, length, protection, page, flags));
  return errno = EINVAL, -1;
}

PCOW_HOOK ssize_t read(int descriptor, void* buffer, size_t length) {
  const iovec part = {buffer, length};
  return read_by(descriptor, &part, 1, [&] {
    return next_read ? next_read(descriptor, buffer, length)
                     : syscall(SYS_read, descriptor, buffer, length);
  });
}

PCOW_HOOK ssize_t pread64(int descriptor, void* buffer, size_t length, off64_t offset) {
  const iovec part = {buffer, length};
  return read_by(descriptor, &part, 1, [&] {
    return next_pread ? next_pread(descriptor, buffer, length, offset)
                      : syscall(SYS_pread64, descriptor, buffer, length, offset);
  });
}

PCOW_HOOK ssize_t pread(int descriptor, void* buffer, size_t length, off_t offset) {
  return pread64(descriptor, buffer, length, offset);
}

PCOW_HOOK ssize_t readv(int descriptor, const iovec* parts, int count) {
  return read_by(descriptor, parts, count, [&] {
    return next_readv ? next_readv(descriptor, parts, count)
                      : syscall(SYS_readv, descriptor, parts, count);
  });
}

PCOW_HOOK ssize_t preadv64(int descriptor, const iovec* parts, int count, off64_t offset) {
  return read_by(descriptor, parts, count, [&] {
    return next_preadv ? next_preadv(descriptor, parts, count, offset)
                       : syscall(SYS_preadv, descriptor, parts, count, offset, 0);
  });
}

PCOW_HOOK ssize_t preadv(int descriptor, const iovec* parts, int count, off_t offset) {
  return preadv64(descriptor, parts, count, offset);
}

PCOW_HOOK ssize_t preadv64v2(int descriptor, const iovec* parts, int count, off64_t offset,
                             int flags) {
  return read_by(descriptor, parts, count, [&] {
    return next_preadv2 ? next_preadv2(descriptor, parts, count, offset, flags)
                        : syscall(SYS_preadv2, descriptor, parts, count, offset, 0, flags);
  });
}

PCOW_HOOK ssize_t preadv2(int descriptor, const iovec* parts, int count, off_t offset, int flags) {
  return preadv64v2(descriptor, parts, count, offset, flags);
}
