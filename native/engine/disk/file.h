// The one door through which the engine touches the disk. An observer may watch every operation and make it fail: the
// power-cut simulator and the fault-injection tests stand there.
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
  kSync,
  kWriteBack,
  kMap,
  kStore,
  // Of a file in persistent memory alone (persistent.h). There a write is a copy whose lines are on their way to the medium, and a store is in
  // the processor's cache.
  kFlush,       // the lines of the range are on their way
  kFence,       // what this thread has on its way is on the medium
  kWriteFault,  // the filesystem has made durable where the pages of the range are, and that the file reaches to its end
};

class FileObserver {
 public:
  virtual ~FileObserver() = default;
  // Before the operation, on the thread that does it. `data` holds what a write or a store is about to put at `offset`.
  // Returns 0 to let it happen, or an errno to make it fail without happening (not for kStore and those behind it, which cannot fail).
  virtual int before(FileOperation operation, const std::string& path, uint64_t offset, uint64_t length,
                     const void* data) = 0;
  // How much of `length` bytes one system call of a read or a write moves. 0: a signal interrupts it, whatever it does.
  virtual size_t step(FileOperation, size_t length) { return length; }
  // The file counts as one in persistent memory, wherever it is.
  virtual bool is_persistent(const std::string&) { return false; }
};

struct GuardedRange;
struct PersistentMemory;

// A shared mapping of a range of a file; unmapped when it goes. An access to a page that is not there does not end the process
// (bus_guard.h): the mapping is torn then. What is loaded from it is zeros, and what is stored into it is lost.
class Mapping {
 public:
  // `stores_lost` (may be null): becomes true when the mapping is torn.
  Mapping(void* address, size_t length, int protection, std::shared_ptr<std::atomic<bool>> stores_lost);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint64_t* words() const { return static_cast<uint64_t*>(address_); }
  // To be asked after whatever was loaded, before anybody relies on it.
  bool is_torn() const;
  // Nothing is read ahead of an access any more.
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
  // Opens an existing regular file. Anything else (a directory, a device, a pipe) is kInvalid, without blocking on it.
  static Result<std::shared_ptr<File>> open(const std::string& path, bool write, FileObserver* observer);
  // A file that somebody else has opened: takes a duplicate of the descriptor, and with it its lock.
  static Result<std::shared_ptr<File>> adopt(const std::string& path, int descriptor, FileObserver* observer);
  // Makes a new file; kExists where there is one.
  static Result<std::shared_ptr<File>> create(const std::string& path, FileObserver* observer);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }

  // Reads until `length` or the end of the file; returns the bytes read. Offsets and lengths in bytes throughout.
  Result<size_t> read(uint64_t offset, void* buffer, size_t length) const;
  // All or an error; kCorrupt where the file ends before that.
  Result<void> read_all(uint64_t offset, void* buffer, size_t length) const;
  // All or an error. In persistent memory: durable when it returns.
  Result<void> write(uint64_t offset, const void* buffer, size_t length);
  // Whether the file lies in persistent memory that this processor can store to durably: found when it is opened for writing. What the
  // engine stores there by write(), store() and resize() is durable when they return. Holes, and what others store through mappings of
  // their own, are only so by a sync.
  bool is_persistent() const { return memory_ != nullptr; }
  // Reserves disk space of the file's own, so that later stores through a mapping cannot fail; grows the file where it is shorter.
  Result<void> allocate(uint64_t offset, uint64_t length);
  // Makes the range a hole that reads as zeros; the file keeps its size.
  Result<void> punch(uint64_t offset, uint64_t length);
  Result<void> resize(uint64_t length);  // grows it
  // fdatasync(2): data, and the metadata needed to find it. The kernel tells of a lost write-back once and then forgets it:
  // so that nobody takes lost data for safe, a file whose sync has failed cannot be synced any more until it is opened anew.
  Result<void> sync();
  // The same for the range alone: what else has been written may stay behind. msync(2), MS_SYNC.
  Result<void> sync(uint64_t offset, uint64_t length);
  // The same for what this File has written and stored there: nothing is to be done for it in persistent memory.
  Result<void> sync_stored(uint64_t offset, uint64_t length);
  // Whether holes, in persistent memory, wait for a sync().
  bool has_fresh_holes() const;
  // Writes back what is dirty before `end`, so that the next sync finds less. Nothing is durable by that; but any failure
  // counts as a failed sync, for by it the kernel may tell of a lost write-back. In steps of a third of a millisecond: in each the kernel takes the lock of the file's
  // mappings for every dirty page that is mapped, and whoever maps something, as the monitor does for a page fault, gets it only between
  // two steps, or after 4 ms; nor does it look in between who else wants the processor. sync_file_range(2).
  Result<void> write_back(uint64_t end);
  Result<std::unique_ptr<Mapping>> map(uint64_t offset, uint64_t length, bool write);
  // An atomic store into a mapping of this file: `word` lies at file offset `offset`. In persistent memory: durable when it returns.
  void store(uint64_t* word, uint64_t offset, uint64_t value) {
    store_unfenced(word, offset, value);
    if (is_persistent()) persist(word, offset, sizeof value);
  }
  // The same for several words: to be followed by persist(), once for all of them, where the file is in persistent memory.
  void store_unfenced(uint64_t* word, uint64_t offset, uint64_t value) {
    if (observer_) observer_->before(FileOperation::kStore, path_, offset, sizeof value, &value);
    std::atomic_ref<uint64_t>(*word).store(value, std::memory_order_release);
  }
  void persist(const uint64_t* words, uint64_t offset, size_t length);

  // How often this File has called write(2), or the kernel to make something durable.
  struct KernelCalls {
    uint64_t writes;
    uint64_t syncs;
  };
  KernelCalls kernel_calls() const { return {kernel_writes_.load(), kernel_syncs_.load()}; }

  // Whether a mapping for writing has been torn: stores are lost, and so no sync succeeds any more until the file is opened anew.
  bool is_torn() const { return stores_lost_->load(std::memory_order_acquire); }
  // Its writer made it at least that long, in bytes: an error where it is not any more, and no sync succeeds from then on either.
  Result<void> check_length(uint64_t end);
  // Whether the filesystem says that it has so many bytes for us. A guess: others use it as well.
  bool disk_has(uint64_t bytes) const;
  // Why the file counts as unsynced until it is opened anew, where a sync or a write-back of it has failed.
  std::optional<Error> sync_failure() const;
  // The error of a torn mapping, whichever.
  Error torn() const;

  // The kernel need not keep its copy of the range: the next read of it is from the disk. What is not written back stays.
  void forget_cached(uint64_t offset, uint64_t length) const;
  // The range will be read soon.
  void read_ahead(uint64_t offset, uint64_t length) const;

  Result<struct stat> status() const;
  Result<uint64_t> size() const;
  // Whether the file reaches to byte `end`; asks the kernel only where it was shorter when last asked.
  bool covers(uint64_t end) const;
  // The first offset at or after `from` that holds data (or a hole), or `end` where there is none before it.
  Result<uint64_t> next_data(uint64_t from, uint64_t end) const;
  Result<uint64_t> next_hole(uint64_t from, uint64_t end) const;

  // Takes the writer's lock: an open-file-description lock on byte 0 (fcntl(2), F_OFD_SETLK). false: somebody has it.
  Result<bool> try_lock();
  void unlock();
  // Whether some open file description holds the writer's lock, or may hold it: the kernel does not say.
  bool is_locked_by_other() const;

 private:
  File(std::string path, int descriptor, FileObserver* observer);
  void find_out_where(bool write);
  int observe(FileOperation operation, uint64_t offset, uint64_t length, const void* data) const {
    return observer_ ? observer_->before(operation, path_, offset, length, data) : 0;
  }
  size_t step(FileOperation operation, size_t length) const {
    return observer_ ? observer_->step(operation, length) : length;
  }
  // Calls again while signals interrupt it. Returns an errno, or 0.
  template <typename Call>
  int insist(FileOperation operation, const Call& call) const;
  // The same for a read or a write: `call` moves that many bytes, from that many on, until all are moved or none are left.
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
  std::atomic<uint64_t> mapped_end_{0};    // bytes: the farthest that was mapped
  std::atomic<uint64_t> least_length_{0};  // bytes: what check_length() has missed
  const std::shared_ptr<std::atomic<bool>> stores_lost_ = std::make_shared<std::atomic<bool>>(false);
  // Whether the filesystem can end the sharing of space with other files: not known, until known_to_unshare_ or not unshares_.
  std::atomic<bool> unshares_{true};
  std::atomic<bool> known_to_unshare_{false};
  mutable std::mutex failing_;  // guards the next
  std::optional<Error> sync_failure_;
};

}  // namespace pcow
