// Which addresses and which open files of this process belong to attached images. Every interposed function asks this first, and
// most calls end here: it takes no memory and no lock, so that the application's allocator may call us in the middle of its work,
// and a signal handler in the middle of ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pcow::footprint {

// An open file without a question to its filesystem, which may be a mount that has died. With Linux 6.8 and newer the number of a mount is
// never used again; before, a mount that ends may leave its number to another one.
struct OpenFile {
  uint64_t mount = 0;
  uint64_t inode = 0;
  friend bool operator==(const OpenFile&, const OpenFile&) = default;
};
// false, with errno: there is no such descriptor.
bool identify(int descriptor, OpenFile* file);

struct Range {
  uintptr_t from;
  uintptr_t to;
};

// Any thread, at any time. May say yes to what lies between two mappings, where there are very many.
bool holds(const void* address, size_t length);
bool holds(const OpenFile& file);
bool is_empty();

// One caller at a time. Whatever a thread is given afterwards (an address by mmap) it finds here.
void publish(std::vector<Range> ranges, const std::vector<OpenFile>& files);
// In a child of fork(2), which has none of its parent's mappings.
void clear();

}  // namespace pcow::footprint
