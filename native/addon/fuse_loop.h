// The threads that serve a mount's requests, instead of libfuse's own loop.
//
// For each request, libfuse searches a table of inodes, builds the path and looks for interrupts.
// Reads, writes and seeks of an open flat file need none of this: here they go straight from the
// kernel's message to the image. Questions about attributes are answered here if the flat file of
// the node is known, and so are opens that JavaScript has granted (OpenGrants). All other requests
// are passed to libfuse unchanged.
#pragma once

#define FUSE_USE_VERSION 29
#include <fuse.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "addon/fuse_nodes.h"

namespace pcow::addon {

struct OpenedFile {
  uint64_t fh;
  bool keep_cache;  // the kernel may keep the pages that it has of the file
};

// Requests that need only a file handle, or the number of a node. Called on any thread of the loop.
// They return bytes, or a negative errno.
struct DirectOperations {
  bool (*knows)(uint64_t fh);
  // `pid`: the thread that needs the bytes; 0 if there is none.
  int (*read)(uint64_t fh, char* buffer, size_t length, uint64_t offset, uint32_t pid);
  // `cached`: the kernel writes back pages of its cache; no process waits for it in write(2).
  int (*write)(uint64_t fh, const char* buffer, size_t length, uint64_t offset, bool cached,
               uint32_t pid);
  // lseek(2) with SEEK_DATA or SEEK_HOLE. Returns an offset, or a negative errno. Called for every
  // handle, also one that `knows` rejects.
  int64_t (*seek)(uint64_t fh, uint64_t offset, uint32_t whence);
  // stat(2). Returns nothing if libfuse must be asked.
  std::optional<KeptStatus> (*status)(uint64_t node);
  // open(2) by the thread `pid`. Returns nothing if libfuse must be asked.
  std::optional<OpenedFile> (*open)(uint64_t node, uint32_t flags, uint32_t pid);
  // Returns false if libfuse must be asked.
  bool (*release)(uint64_t fh);
};

// Runs until the session has ended, for whatever reason. Returns 0, or -1 if no thread could be
// started; nothing if libfuse lacks a function, and its own loop must be used.
std::optional<int> run_fuse_loop(void* libfuse, fuse* fuse, const DirectOperations& operations);

}  // namespace pcow::addon
