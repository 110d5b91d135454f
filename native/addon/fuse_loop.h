// The threads that serve a mount's requests, in place of libfuse's own loop.
//
// libfuse takes each request through a table of inodes, builds its path and looks for interrupts, which reads, writes and seeks of
// an open flat file have no use for. Here they go from the kernel's message straight to the image; every other request is libfuse's,
// as it came.
#pragma once

#define FUSE_USE_VERSION 29
#include <fuse.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace pcow::addon {

// Serves requests that need no more than a file handle. Any thread of the loop's; returns bytes, or a negative errno.
struct DirectOperations {
  bool (*knows)(uint64_t fh);
  int (*read)(uint64_t fh, char* buffer, size_t length, uint64_t offset);
  // `cached`: the kernel writes back pages of its cache; nobody waits in a write(2) for it.
  int (*write)(uint64_t fh, const char* buffer, size_t length, uint64_t offset, bool cached);
  // lseek(2) by SEEK_DATA or SEEK_HOLE; an offset, or a negative errno. Asked for every handle.
  int64_t (*seek)(uint64_t fh, uint64_t offset, uint32_t whence);
};

// Until the session is over, however that comes. 0, or -1 where no thread could be started; nothing where this libfuse lacks
// something, and its own loop must do.
std::optional<int> run_fuse_loop(void* libfuse, fuse* fuse, const DirectOperations& operations);

}  // namespace pcow::addon
