// All accesses of the engine to the disk go through this file. An observer may watch every
// operation and make it fail: the power-cut simulator and the fault-injection tests are observers.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "engine/error.h"

namespace pcow {

inline constexpr uint64_t kWholeFile = ~uint64_t{0};  // the length of a sync of everything

enum class FileOperation {
  kRead,
  kWrite,
  kAllocate,
  kPunch,
  kResize,
  kShorten,
  kSync,
  kWriteBack,
  kMap,
  kStore,
  // Only for a file in persistent memory (persistent.h). There a write is a copy whose cache lines
  // are on their way to the medium, and a store is in the processor's cache.
  kFlush,  // the lines of the range are on their way
  kFence,  // all lines that this thread has flushed or copied are on the medium
  // The filesystem has made durable where the pages of the range are, and that the file reaches to
  // the end of the range.
  kWriteFault,
};

class FileObserver {
 public:
  virtual ~FileObserver() = default;
  // Called before the operation, on the thread that performs it. `data` holds what a write or a
  // store is about to put at `offset`. Returns 0 to let it happen, or an errno to make it fail
  // without happening (ignored for kStore and the operations after it, which cannot fail).
  virtual int before(FileOperation operation, const std::string& path, uint64_t offset,
                     uint64_t length, const void* data) = 0;
  // How many of `length` bytes one system call of a read or a write moves. 0: a signal interrupts
  // the call.
  virtual size_t step(FileOperation, size_t length) { return length; }
  // Whether the file counts as one in persistent memory, wherever it is.
  virtual bool is_persistent(const std::string&) { return false; }
};

struct GuardedRange;
struct PersistentMemory;

// A shared mapping of a range of a file; the destructor unmaps it. An access to a page that does
// not exist does not end the process (bus_guard.h), but tears the mapping: loads from it then
// return zeros, and stores into it are lost.
class Mapping {
 public:
  // `stores_lost` (may be null) becomes true when the mapping is torn.
  Mapping(void* address, size_t length, int protection,
          std::shared_ptr<std::atomic<bool>> stores_lost);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint64_t* words() const { return static_cast<uint64_t*>(address_); }
  // Must be called after loading from the mapping, before the loaded data is used.
  bool is_torn() const;
  // Turns off read-ahead.
  void expect_random() const;
  size_t length() const { return length_; }

 private:
  void* address_;
  size_t length_;
  std::shared_ptr<std::atomic<bool>> stores_lost_;
  GuardedRange* guard_;
};

class File {
 public:
  // Opens an existing regular file. Anything else (a directory, a device, a pipe) is kInvalid,
  // without blocking on it.
  static Result<std::shared_ptr<File>> open(const std::string& path, bool write,
                                            FileObserver* observer);
  // Adopts a file that the caller has opened: duplicates the descriptor, which shares its lock.
  static Result<std::shared_ptr<File>> adopt(const std::string& path, int descriptor,
                                             FileObserver* observer);
  // Creates a new file; kExists if the name is taken.
  static Result<std::shared_ptr<File>> create(const std::string& path, FileObserver* observer);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }

  // Reads until `length` or the end of the file, and returns the number of bytes read. All offsets
  // and lengths are in bytes.
  Result<size_t> read(uint64_t offset, void* buffer, size_t length) const;
  // Reads everything or fails; kCorrupt if the file ends before that.
  Result<void> read_all(uint64_t offset, void* buffer, size_t length) const;
  // Writes everything or fails. In persistent memory the data is durable on return.
  Result<void> write(uint64_t offset, const void* buffer, size_t length);
  // Whether the file is in persistent memory to which this processor can store durably; determined
  // when the file is opened for writing. What the engine stores there by write(), store() and
  // resize() is durable when they return. Holes, and what others store through their own mappings,
  // become durable only with a sync.
  bool is_persistent() const { return memory_ != nullptr; }
  // Reserves disk space that the file shares with no other, so that later stores through a mapping
  // cannot fail. Grows the file if it is shorter.
  Result<void> allocate(uint64_t offset, uint64_t length);
  // Makes the range a hole that reads as zeros; the file keeps its size.
  Result<void> punch(uint64_t offset, uint64_t length);
  Result<void> resize(uint64_t length);  // only grows the file
  // Cuts off what lies behind these bytes, of which nobody needs anything.
  Result<void> shorten(uint64_t length);
  // fdatasync(2): data, and the metadata needed to find it. The kernel reports a lost write-back
  // once and then forgets it. So that lost data is never taken for durable, every later sync of a
  // file whose sync has failed fails too, until the file is opened again.
  Result<void> sync();
  // The same for the range only: other data may stay unwritten. msync(2), MS_SYNC.
  Result<void> sync(uint64_t offset, uint64_t length);
  // The same for what this File has written and stored in the range: in persistent memory nothing
  // needs to be done.
  Result<void> sync_stored(uint64_t offset, uint64_t length);
  // Whether holes in persistent memory wait for a sync().
  bool has_fresh_holes() const;
  // Writes back what is dirty before `end`, so that the next sync has less to do
  // (sync_file_range(2)). It makes nothing durable, but any failure counts as a failed sync,
  // because the kernel may report a lost write-back with it. It works in steps of a third of a
  // millisecond. In each step the kernel takes the lock of the file's mappings for every dirty page
  // that is mapped. A thread that maps something (as the monitor does for a page fault) gets this
  // lock only between two steps, or after 4 ms. Nor does the kernel let another thread use the
  // processor within a step.
  Result<void> write_back(uint64_t end);
  Result<std::unique_ptr<Mapping>> map(uint64_t offset, uint64_t length, bool write);
  // An atomic store into a mapping of this file: `word` is at file offset `offset`. In persistent
  // memory it is durable on return.
  void store(uint64_t* word, uint64_t offset, uint64_t value) {
    store_unfenced(word, offset, value);
    if (is_persistent()) persist(word, offset, sizeof value);
  }
  // The same for several words. In persistent memory, call persist() once after all of them.
  void store_unfenced(uint64_t* word, uint64_t offset, uint64_t value) {
    if (observer_) observer_->before(FileOperation::kStore, path_, offset, sizeof value, &value);
    std::atomic_ref<uint64_t>(*word).store(value, std::memory_order_release);
  }
  void persist(const uint64_t* words, uint64_t offset, size_t length);

  // How often this File has called write(2), and how often it has asked the kernel to make
  // something durable.
  struct KernelCalls {
    uint64_t writes;
    uint64_t syncs;
  };
  KernelCalls kernel_calls() const { return {kernel_writes_.load(), kernel_syncs_.load()}; }

  // Whether a mapping for writing was torn: stores are lost, so no sync succeeds until the file is
  // opened again.
  bool is_torn() const { return stores_lost_->load(std::memory_order_acquire); }
  // Fails if the file is shorter than `end` bytes, although its writer made it that long; from then
  // on no sync succeeds, either.
  Result<void> check_length(uint64_t end);
  // Whether the filesystem reports so many free bytes. Only a guess, because others use them as
  // well.
  bool disk_has(uint64_t bytes) const;
  // The reason why no sync succeeds until the file is opened again, if a sync or a write-back has
  // failed.
  std::optional<Error> sync_failure() const;
  // The error of a torn mapping of this file.
  Error torn() const;

  // Lets the kernel drop its cached copy of the range, so that the next read comes from the disk.
  // Dirty pages stay.
  void forget_cached(uint64_t offset, uint64_t length) const;
  // Announces that the range will be read soon.
  void read_ahead(uint64_t offset, uint64_t length) const;

  Result<struct stat> status() const;
  Result<uint64_t> size() const;
  // Whether the file reaches to byte `end`. Asks the kernel only if the file was shorter when last
  // asked.
  bool covers(uint64_t end) const;
  // The first offset at or after `from` that holds data (or a hole); `end` if there is none before
  // it.
  Result<uint64_t> next_data(uint64_t from, uint64_t end) const;
  Result<uint64_t> next_hole(uint64_t from, uint64_t end) const;

  // Takes the writer's lock: an open-file-description lock on byte 0 (fcntl(2), F_OFD_SETLK).
  // Returns false if another holder has it.
  Result<bool> try_lock();
  void unlock();
  // Whether some open file description holds the writer's lock; also true if the kernel does not
  // tell.
  bool is_locked_by_other() const;
  // Whether a process of another host holds it, on a filesystem that hosts share.
  bool is_locked_by_other_host() const;

 private:
  File(std::string path, int descriptor, FileObserver* observer);
  void find_out_where(bool write);
  int observe(FileOperation operation, uint64_t offset, uint64_t length, const void* data) const {
    return observer_ ? observer_->before(operation, path_, offset, length, data) : 0;
  }
  size_t step(FileOperation operation, size_t length) const {
    return observer_ ? observer_->step(operation, length) : length;
  }
  // Repeats the call while signals interrupt it. Returns an errno, or 0.
  template <typename Call>
  int insist(FileOperation operation, const Call& call) const;
  // The same for a read or a write: `call` moves up to that many bytes at that position, until all
  // are moved or none are left.
  template <typename Call>
  int move_all(FileOperation operation, size_t length, size_t* done, const Call& call) const;
  Result<uint64_t> seek(uint64_t from, uint64_t end, int whence) const;
  template <typename Call>
  int tell_lost(FileOperation operation, uint64_t offset, uint64_t length, const Call& call);
  template <typename Call>
  Result<void> sync_by(uint64_t offset, uint64_t length, const Call& call);
  Error fail_sync(int err);
  Result<void> make_hole(uint64_t offset, uint64_t length);
  Result<std::unique_ptr<Mapping>> map_by(uint64_t offset, uint64_t length, bool write, int flags);
  void note_end(uint64_t end);
  // file_persistent.cc
  Result<void> copy_in(uint64_t offset, const void* buffer, size_t length);
  Result<void> make_ready(uint64_t offset, uint64_t length);
  Result<void> make_window(uint64_t number);
  Result<void> commit_length(uint64_t before, uint64_t length);
  void touch(uint64_t offset, uint64_t length);

  std::string path_;
  int descriptor_;
  FileObserver* observer_;
  std::unique_ptr<PersistentMemory> memory_;  // null: the file is on a disk
  std::atomic<uint64_t> kernel_writes_{0};
  std::atomic<uint64_t> kernel_syncs_{0};
  mutable std::atomic<uint64_t> known_size_{0};
  std::atomic<uint64_t> mapped_end_{0};    // bytes: the end of the farthest mapping
  std::atomic<uint64_t> least_length_{0};  // bytes: the length that check_length() found missing
  const std::shared_ptr<std::atomic<bool>> stores_lost_ =
      std::make_shared<std::atomic<bool>>(false);
  // Whether the filesystem can unshare space. It is certain after known_to_unshare_ becomes true or
  // unshares_ becomes false.
  std::atomic<bool> unshares_{true};
  std::atomic<bool> known_to_unshare_{false};
  mutable std::mutex failing_;  // guards sync_failure_
  std::optional<Error> sync_failure_;
};

}  // namespace pcow
