// The addresses and open files of this process that belong to attached images. Every interposed
// function asks this first, and most calls end here. It uses no memory allocator and no lock: the
// application's allocator may call the hooks while it holds its own locks, and a signal handler may
// interrupt them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pcow::footprint {

// Identifies an open file without a request to its filesystem, which may be a mount that has died.
// Since Linux 6.8 the number of a mount is never used again; before, it may be.
struct OpenFile {
  uint64_t mount = 0;
  uint64_t inode = 0;
  friend bool operator==(const OpenFile&, const OpenFile&) = default;
};
// Returns false, with errno set, if there is no such descriptor.
bool identify(int descriptor, OpenFile* file);

struct Range {
  uintptr_t from;
  uintptr_t to;
};

// Any thread, at any time. If there are very many mappings, also returns true for addresses between
// two of them.
bool holds(const void* address, size_t length);
bool holds(const OpenFile& file);
bool is_empty();

// One caller at a time. A thread that learns an address afterwards (from mmap) finds it here.
void publish(std::vector<Range> ranges, const std::vector<OpenFile>& files);
// For a child of fork(2), which has none of its parent's mappings.
void clear();

}  // namespace pcow::footprint
