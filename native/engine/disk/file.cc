#include "engine/disk/file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "engine/disk/bus_guard.h"
#include "engine/disk/page.h"
#include "engine/disk/persistent.h"
#include "engine/rules.h"

namespace pcow {
namespace {

constexpr const char* kUntilOpenedAnew =
    "; every later sync fails, too, until the image is opened again";

// Whether the whole range has disk space that it shares with no other file: ioctl_fiemap(2).
bool has_own_space(int descriptor, uint64_t offset, uint64_t length) {
  constexpr uint32_t kExtents = 64;
  alignas(fiemap) char bytes[sizeof(fiemap) + kExtents * sizeof(fiemap_extent)] = {};
  auto* map = reinterpret_cast<fiemap*>(bytes);
  for (const uint64_t end = offset + length; offset < end;) {
    map->fm_start = offset;
    map->fm_length = end - offset;
    map->fm_extent_count = kExtents;
    if (ioctl(descriptor, FS_IOC_FIEMAP, map) < 0 || map->fm_mapped_extents == 0) return false;
    for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
      const fiemap_extent& extent = map->fm_extents[i];
      const bool shared = extent.fe_flags & (FIEMAP_EXTENT_SHARED | FIEMAP_EXTENT_UNKNOWN);
      if (shared || extent.fe_logical > offset) return false;
      offset = extent.fe_logical + extent.fe_length;
    }
  }
  return true;
}

}  // namespace

Mapping::Mapping(void* address, size_t length, int protection,
                 std::shared_ptr<std::atomic<bool>> stores_lost)
    : address_(address),
      length_(length),
      stores_lost_(std::move(stores_lost)),
      guard_(guard_range(address, length, protection, stores_lost_.get())) {}

Mapping::~Mapping() {
  unguard_range(guard_);
  munmap(address_, length_);
}

bool Mapping::is_torn() const { return guard_->torn.load(std::memory_order_acquire); }

void Mapping::expect_random() const { madvise(address_, length_, MADV_RANDOM); }

File::File(std::string path, int descriptor, FileObserver* observer)
    : path_(std::move(path)), descriptor_(descriptor), observer_(observer) {}

// Each file is examined by itself: a directory may contain files of both kinds.
void File::find_out_where(bool write) {
  if (!write) return;
  const bool as_if = observer_ && observer_->is_persistent(path_);
  if (as_if || is_in_persistent_memory(descriptor_))
    memory_ =
        std::make_unique<PersistentMemory>(as_if ? MAP_SHARED : MAP_SHARED_VALIDATE | MAP_SYNC);
}

Result<std::shared_ptr<File>> File::open(const std::string& path, bool write,
                                         FileObserver* observer) {
  // O_NONBLOCK: opening a FIFO that has an image's name must not block; it has no effect on a
  // regular file.
  const int descriptor =
      ::open(path.c_str(), (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) return disk_error(errno, "cannot open " + path);
  std::shared_ptr<File> file(new File(path, descriptor, observer));
  auto status = file->status();
  if (!status) return status.error();
  if (!S_ISREG(status->st_mode)) return Error(Code::kNotAnImage, path + " is not a regular file");
  file->find_out_where(write);
  return file;
}

Result<std::shared_ptr<File>> File::adopt(const std::string& path, int descriptor,
                                          FileObserver* observer) {
  const int duplicate = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (duplicate < 0) return system_error(errno, "cannot use the descriptor of " + path);
  std::shared_ptr<File> file(new File(path, duplicate, observer));
  auto status = file->status();
  if (!status) return status.error();
  if (!S_ISREG(status->st_mode)) return Error(Code::kNotAnImage, path + " is not a regular file");
  file->find_out_where((fcntl(duplicate, F_GETFL) & O_ACCMODE) == O_RDWR);
  return file;
}

Result<std::shared_ptr<File>> File::create(const std::string& path, FileObserver* observer) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_CREAT | O_EXCL, 0666);
  if (descriptor < 0) return disk_error(errno, "cannot create " + path);
  return std::shared_ptr<File>(new File(path, descriptor, observer));
}

File::~File() { ::close(descriptor_); }

template <typename Call>
int File::insist(FileOperation operation, const Call& call) const {
  for (;;) {
    const bool interrupted = step(operation, 1) == 0;
    if (!interrupted && call() == 0) return 0;
    if (!interrupted && errno != EINTR) return errno;
  }
}

template <typename Call>
int File::move_all(FileOperation operation, size_t length, size_t* done, const Call& call) const {
  while (*done < length) {
    const size_t most = step(operation, length - *done);
    if (most == 0) continue;
    const ssize_t count = call(*done, most);
    if (count == 0) return 0;
    if (count < 0 && errno != EINTR) return errno;
    if (count > 0) *done += static_cast<size_t>(count);
  }
  return 0;
}

Result<size_t> File::read(uint64_t offset, void* buffer, size_t length) const {
  size_t done = 0;
  int err = observe(FileOperation::kRead, offset, length, nullptr);
  if (!err) {
    err = move_all(FileOperation::kRead, length, &done, [&](size_t from, size_t most) {
      return pread(descriptor_, static_cast<char*>(buffer) + from, most,
                   static_cast<off_t>(offset + from));
    });
  }
  if (err) return disk_error(err, "cannot read " + path_);
  return done;
}

Result<void> File::read_all(uint64_t offset, void* buffer, size_t length) const {
  auto count = read(offset, buffer, length);
  if (!count) return count.error();
  if (*count != length) return Error(Code::kCorrupt, path_ + " was cut short while it was open");
  return {};
}

Result<void> File::write(uint64_t offset, const void* buffer, size_t length) {
  if (memory_) return copy_in(offset, buffer, length);
  kernel_writes_.fetch_add(1, std::memory_order_relaxed);
  size_t done = 0;
  int err = observe(FileOperation::kWrite, offset, length, buffer);
  if (!err) {
    err = move_all(FileOperation::kWrite, length, &done, [&](size_t from, size_t most) {
      return pwrite(descriptor_, static_cast<const char*>(buffer) + from, most,
                    static_cast<off_t>(offset + from));
    });
  }
  if (!err && done < length) err = EIO;
  if (err) return disk_error(err, "cannot write " + path_);
  return {};
}

Result<void> File::allocate(uint64_t offset, uint64_t length) {
  const auto failed = [&](int err) { return disk_error(err, "cannot allocate space in " + path_); };
  if (const int err = observe(FileOperation::kAllocate, offset, length, nullptr))
    return failed(err);
  const auto act = [&](int mode) {
    return insist(FileOperation::kAllocate, [&] {
      return fallocate(descriptor_, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
    });
  };
  int err = 0;
  // Space that the range shares with another file (cp makes reflinks if it can) is not its own: a
  // store would need new space. Unsharing also allocates. A filesystem that does not support it at
  // the first attempt never will.
  if (unshares_.load(std::memory_order_relaxed)) {
    err = act(FALLOC_FL_UNSHARE_RANGE);
    if (!err) known_to_unshare_.store(true, std::memory_order_relaxed);
    if (err == EOPNOTSUPP && !known_to_unshare_.load(std::memory_order_relaxed))
      unshares_.store(false, std::memory_order_relaxed);
  }
  if (!unshares_.load(std::memory_order_relaxed)) err = act(0);
  // On a full disk XFS asks for free space before it checks whether any is needed.
  const bool full = err == ENOSPC || err == EDQUOT;
  if (full && covers(offset + length) && has_own_space(descriptor_, offset, length)) return {};
  if (err) return failed(err);
  return {};
}

Result<void> File::punch(uint64_t offset, uint64_t length) {
  auto outcome = make_hole(offset, length);
  // Set this after the hole is made: a sync that was called earlier need not cover it.
  if (memory_) memory_->has_fresh_holes.store(true);
  return outcome;
}

Result<void> File::make_hole(uint64_t offset, uint64_t length) {
  std::unique_lock<std::shared_mutex> nobody_stores;
  if (memory_) {
    nobody_stores = std::unique_lock(memory_->mutex);
    const uint64_t first = offset / kPageSize;
    memory_->ready.set(first, (offset + length + kPageSize - 1) / kPageSize - first, false);
  }
  int err = observe(FileOperation::kPunch, offset, length, nullptr);
  if (!err) {
    err = insist(FileOperation::kPunch, [&] {
      return fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(offset), static_cast<off_t>(length));
    });
  }
  if (err) return disk_error(err, "cannot punch a hole in " + path_);
  return {};
}

Result<void> File::resize(uint64_t length) {
  Result<uint64_t> before = uint64_t{0};
  if (memory_ && !(before = size())) return before.error();
  int err = observe(FileOperation::kResize, 0, length, nullptr);
  if (!err)
    err = insist(FileOperation::kResize,
                 [&] { return ftruncate(descriptor_, static_cast<off_t>(length)); });
  if (err) return disk_error(err, "cannot change the size of " + path_);
  if (memory_ && keeps(Rule::kLengthBeforeUse)) return commit_length(*before, length);
  return {};
}

Result<void> File::shorten(uint64_t length) {
  std::unique_lock<std::shared_mutex> nobody_stores;
  if (memory_) {
    nobody_stores = std::unique_lock(memory_->mutex);
    const uint64_t first = length / kPageSize;
    memory_->ready.set(first, std::max(memory_->ready.end(), first) - first, false);
  }
  int err = observe(FileOperation::kShorten, 0, length, nullptr);
  if (!err)
    err = insist(FileOperation::kShorten,
                 [&] { return ftruncate(descriptor_, static_cast<off_t>(length)); });
  if (err) return disk_error(err, "cannot change the size of " + path_);
  return {};
}

Result<void> File::check_length(uint64_t end) {
  auto now = size();
  if (!now) return now.error();
  if (*now >= end) return {};
  least_length_.store(end);
  stores_lost_->store(true);
  return torn();
}

bool File::disk_has(uint64_t bytes) const {
  struct statvfs disk;
  return fstatvfs(descriptor_, &disk) == 0 && disk.f_bavail >= bytes / disk.f_frsize;
}

Error File::torn() const {
  auto now = size();
  if (now && *now < std::max(mapped_end_.load(), least_length_.load()))
    return Error(Code::kCorrupt, path_ + " was cut short while it was open");
  return Error(
      Code::kIo,
      path_ + ": a mapped page cannot be read from the disk, or the disk has no space for it");
}

std::optional<Error> File::sync_failure() const {
  if (is_torn()) {
    Error error = torn();
    error.message += kUntilOpenedAnew;
    return error;
  }
  const std::lock_guard lock(failing_);
  return sync_failure_;
}

Error File::fail_sync(int err) {
  Error error = disk_error(err, "cannot sync " + path_);
  error.message += kUntilOpenedAnew;
  const std::lock_guard lock(failing_);
  sync_failure_ = error;
  return error;
}

// A call in which the kernel may report a lost write-back. It reports it only once for each file
// description, so the call is not repeated, whatever errno it returns. EINTR may be the disk's
// reason, too (a filesystem in userspace, a server). Signals are blocked, so that it never means
// just a signal to this process.
template <typename Call>
int File::tell_lost(FileOperation operation, uint64_t offset, uint64_t length, const Call& call) {
  if (const int err = observe(operation, offset, length, nullptr)) return err;
  kernel_syncs_.fetch_add(1, std::memory_order_relaxed);
  const SignalsHeld held;
  return call() == 0 ? 0 : errno;
}

template <typename Call>
Result<void> File::sync_by(uint64_t offset, uint64_t length, const Call& call) {
  if (auto failed = sync_failure()) return *failed;
  if (const int err = tell_lost(FileOperation::kSync, offset, length, call)) return fail_sync(err);
  // The kernel may have reported a loss that concerns this call to another thread, between our call
  // and its return.
  if (auto failed = sync_failure()) return *failed;
  return {};
}

Result<void> File::sync() {
  // Holes that are made from here on wait for the next sync.
  if (memory_) memory_->has_fresh_holes.store(false);
  return sync_by(0, kWholeFile, [&] { return fdatasync(descriptor_); });
}

Result<void> File::sync(uint64_t offset, uint64_t length) {
  const uint64_t start = offset / kPageSize * kPageSize;
  const size_t mapped = offset + length - start;
  // PROT_NONE: in a process that locks its memory (mlockall(2), MCL_FUTURE), the kernel reads in
  // the whole of any accessible mapping.
  void* const address =
      mmap(nullptr, mapped, PROT_NONE, MAP_SHARED, descriptor_, static_cast<off_t>(start));
  if (address == MAP_FAILED) return sync();
  auto outcome = sync_by(offset, length, [&] { return msync(address, mapped, MS_SYNC); });
  munmap(address, mapped);
  return outcome;
}

Result<void> File::write_back(uint64_t end) {
  using namespace std::chrono_literals;
  using Clock = std::chrono::steady_clock;
  constexpr uint64_t kLeast = uint64_t{64} << 10;
  // A longer step may cover pages that are written back together with many dirty ones.
  constexpr uint64_t kMost = uint64_t{2} << 20;
  if (auto failed = sync_failure()) return *failed;
  // Without flags the call does nothing, and takes no error from the file: it only shows whether
  // the call exists (an old kernel or a sandbox may lack it). If it does not, nothing is lost: the
  // next sync has more to do. From here on every failure is a lost write-back. No errno is
  // harmless, because each may be the disk's reason.
  if (sync_file_range(descriptor_, 0, 0, 0) != 0) return {};
  const auto act = [&](uint64_t offset, uint64_t length, unsigned how) {
    return tell_lost(FileOperation::kWriteBack, offset, length, [&] {
      return sync_file_range(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(length),
                             how);
    });
  };
  uint64_t length = uint64_t{256} << 10;
  Clock::duration worked{0};
  for (uint64_t offset = 0; offset < end;) {
    // Holes need no write-back: a sparse file with many tables consists mostly of holes.
    auto data = next_data(offset, end);
    if (!data) return data.error();
    if (*data == end) break;
    offset = std::max(offset, *data / kPageSize * kPageSize);
    const auto began = Clock::now();
    // An error counts even when the call only starts writing: a filesystem may have dropped pages
    // for which it found no space, and reports that to no other call.
    if (const int err = act(offset, length, SYNC_FILE_RANGE_WRITE)) return fail_sync(err);
    const auto took = Clock::now() - began;
    offset += length;
    if (took < 100us) length = std::min(length * 2, kMost);
    if (took > 300us) length = std::max(length / 2, kLeast);
    // Otherwise a thread that waits for this processor would get it only at a tick of the clock,
    // after up to 4 ms.
    if ((worked += took) < 500us) continue;
    worked = {};
    std::this_thread::yield();
  }
  if (const int err = act(0, end, SYNC_FILE_RANGE_WAIT_BEFORE)) return fail_sync(err);
  if (auto failed = sync_failure()) return *failed;
  return {};
}

Result<std::unique_ptr<Mapping>> File::map(uint64_t offset, uint64_t length, bool write) {
  auto mapping =
      map_by(offset, length, write, write && memory_ ? memory_->synced_flags : MAP_SHARED);
  if (mapping) note_end(offset + length);
  return mapping;
}

Result<std::unique_ptr<Mapping>> File::map_by(uint64_t offset, uint64_t length, bool write,
                                              int flags) {
  int err = observe(FileOperation::kMap, offset, length, nullptr);
  if (!err) {
    const int protection = PROT_READ | (write ? PROT_WRITE : 0);
    void* address =
        mmap(nullptr, length, protection, flags, descriptor_, static_cast<off_t>(offset));
    // Not inherited by a child of fork(2): a mapping in a child that outlives its parent would keep
    // the parent's writer lock.
    if (address != MAP_FAILED && madvise(address, length, MADV_DONTFORK) == 0)
      return std::make_unique<Mapping>(address, length, protection, write ? stores_lost_ : nullptr);
    err = errno;
    if (address != MAP_FAILED) munmap(address, length);
  }
  return system_error(err, "cannot map " + path_);
}

void File::note_end(uint64_t end) {
  for (uint64_t known = mapped_end_; known < end && !mapped_end_.compare_exchange_weak(known, end);)
    continue;
}

void File::forget_cached(uint64_t offset, uint64_t length) const {
  posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(length),
                POSIX_FADV_DONTNEED);
}

void File::read_ahead(uint64_t offset, uint64_t length) const {
  posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(length),
                POSIX_FADV_WILLNEED);
}

Result<struct stat> File::status() const {
  struct stat status;
  if (fstat(descriptor_, &status) < 0)
    return disk_error(errno, "cannot get the status of " + path_);
  return status;
}

Result<uint64_t> File::size() const {
  auto found = status();
  if (!found) return found.error();
  return static_cast<uint64_t>(found->st_size);
}

bool File::covers(uint64_t end) const {
  if (end <= known_size_.load(std::memory_order_relaxed)) return true;
  auto now = size();
  if (!now) return false;
  known_size_.store(*now, std::memory_order_relaxed);
  return end <= *now;
}

Result<uint64_t> File::seek(uint64_t from, uint64_t end, int whence) const {
  const off_t found = lseek(descriptor_, static_cast<off_t>(from), whence);
  if (found < 0) {
    if (errno == ENXIO) return end;  // no data (or no hole) from here to the end of the file
    return disk_error(errno, "cannot find the holes of " + path_);
  }
  return static_cast<uint64_t>(found) < end ? static_cast<uint64_t>(found) : end;
}

Result<uint64_t> File::next_data(uint64_t from, uint64_t end) const {
  return seek(from, end, SEEK_DATA);
}

Result<uint64_t> File::next_hole(uint64_t from, uint64_t end) const {
  return seek(from, end, SEEK_HOLE);
}

Result<bool> File::try_lock() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  if (fcntl(descriptor_, F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES) return false;
  return system_error(errno, "cannot lock " + path_);
}

void File::unlock() {
  struct flock lock = {};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  fcntl(descriptor_, F_OFD_SETLK, &lock);
}

bool File::is_locked_by_other() const {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  return fcntl(descriptor_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

// The kernel gives -1 for an open-file-description lock of this host. Otherwise the lock has come
// over the network: a client of NFS sees 0, and its server the process that serves the client.
// (Asked by F_OFD_GETLK, the client would see -1 for every lock.)
bool File::is_locked_by_other_host() const {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  return fcntl(descriptor_, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK && lock.l_pid != -1;
}

}  // namespace pcow
