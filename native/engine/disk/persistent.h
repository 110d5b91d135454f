// Persistent memory that is mapped: a file on a filesystem that is mounted with DAX. A store reaches the medium at any time between itself
// and the next fence after its cache line was flushed, in any order, torn at 8 bytes (docs/format.md, "On persistent memory").
//
// These are the processor's own instructions, and no library's: a package that is compiled at its installation needs no other one for three
// instructions, and what is recorded for the simulator (file.h) is what is done. On processors other than x86-64 a file counts as one on a disk.
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
// The lines of the range are on their way to the medium: clwb, clflushopt, or clflush, whichever there is.
void flush(const void* from, size_t length);
// What this thread has flushed, or copied, before is on the medium.
void fence();
// Copies past the caches. Where the range begins or ends within a line, bytes beside it are not touched, and that line is flushed. No fence.
void copy(void* to, const void* from, size_t length);
// A write fault of each page of the range, if there is to be one: nothing is changed. Anybody may be storing there.
void touch(void* from, size_t length);

}  // namespace cpu

// Whether the file lies in persistent memory that can be mapped with MAP_SYNC, and this processor can flush.
bool is_in_persistent_memory(int descriptor);

// How the engine stores into a file in persistent memory: through mappings of stretches of it, made when they are needed.
struct PersistentMemory {
  static constexpr uint64_t kWindow = uint64_t{256} << 20;

  struct Window {
    // A write fault gets its page a place, which the filesystem makes durable when it likes.
    std::unique_ptr<Mapping> plain;
    // MAP_SYNC: a write fault returns when what has changed of the file's places is durable.
    std::unique_ptr<Mapping> synced;
  };

  explicit PersistentMemory(int synced_flags) : synced_flags(synced_flags) {}

  const int synced_flags;  // for mmap(2)

  // Shared: stores. Exclusive: a page is taken away, or the two below are changed.
  std::shared_mutex mutex;
  std::map<uint64_t, Window> windows;  // by their numbers
  BlockSet ready;                      // pages that a store finds in place, with space of their own, durably

  // Holes have been made that are perhaps not durable: only a sync makes them so.
  std::atomic<bool> has_fresh_holes{false};
};

}  // namespace pcow
