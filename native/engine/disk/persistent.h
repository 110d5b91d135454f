// Persistent memory that is mapped: a file on a filesystem that is mounted with DAX. A store
// reaches the medium at any time before the first fence that follows the flush of its cache line,
// in any order, torn at 8 bytes (docs/format.md, "On persistent memory").
//
// The processor's instructions are used directly, without a library: a package that is compiled
// during installation should not need another library for three instructions, and the simulator
// (file.h) records exactly what is done. On processors other than x86-64 every file counts as one
// on a disk.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>

#include "engine/disk/block_set.h"
#include "engine/disk/file.h"

namespace pcow {

namespace cpu {

inline constexpr size_t kCacheLine = 64;

// Whether this processor can flush a cache line.
bool can_flush();
// Starts writing the lines of the range to the medium: with clwb, clflushopt or clflush, whichever
// exists.
void flush(const void* from, size_t length);
// Returns when everything that this thread has flushed or copied is on the medium.
void fence();
// Copies past the caches. If the range begins or ends within a line, that line is flushed, and the
// bytes beside the range are not touched. Does not fence.
void copy(void* to, const void* from, size_t length);
// Causes a write fault of each page of the range that needs one, without changing anything. Others
// may store there at the same time.
void touch(void* from, size_t length);

}  // namespace cpu

// Whether the file lies in persistent memory that can be mapped with MAP_SYNC, and this processor
// can flush.
bool is_in_persistent_memory(int descriptor);

// How the engine stores into a file in persistent memory: through mappings of parts of it, which
// are made when needed.
struct PersistentMemory {
  static constexpr uint64_t kWindow = uint64_t{256} << 20;

  struct Window {
    // A write fault allocates its page; the filesystem makes that durable at some later time.
    std::unique_ptr<Mapping> plain;
    // MAP_SYNC: a write fault returns after changes of the file's allocation are durable.
    std::unique_ptr<Mapping> synced;
  };

  explicit PersistentMemory(int synced_flags) : synced_flags(synced_flags) {}

  const int synced_flags;  // for mmap(2)

  // Shared: stores. Exclusive: taking a page away, or changing the two fields below.
  std::shared_mutex mutex;
  std::map<uint64_t, Window> windows;  // by number
  // Pages that have space of their own and their place, durably.
  BlockSet ready;

  // Some holes may not be durable yet: only a sync makes them so.
  std::atomic<bool> has_fresh_holes{false};
};

}  // namespace pcow
