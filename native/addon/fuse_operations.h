// The native operations table of a mount.
//
// fuse-native gives libfuse a table of functions that all pass through JavaScript. This addon exports a fuse_new of its own,
// which the dynamic linker finds before libfuse's; it replaces the operations on bytes in that table and calls the real one.
// Likewise fuse_loop_mt: the threads that take requests from the kernel are fuse_loop's.
// src/engine/native-operations.ts says in which order all is loaded, and which requests go where.
//
// Threads: prepare() and fuse_new on the JavaScript thread, before the mount's first request; the operations on the loop's threads, any
// number at a time. An operation may take as long as the disk does: the loop starts another thread where all are taken.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/error.h"

namespace pcow::addon {

// Loads libfuse, so that fuse-native's need for libfuse.so.2 is met on machines that have only fuse3, and opens the image
// directory, for statfs and utimens. Once in a process.
Result<void> prepare_fuse(const std::string& libfuse, const std::string& directory);

// `hook` is called on a thread of the loop once the mount has ended, by whatever means. Before the mount's first request.
void set_fuse_end(std::function<void()> hook);

// How many mounts were given the table: 0 or 1.
uint64_t fuse_interceptions();

// How many requests were served natively.
uint64_t fuse_requests();

}  // namespace pcow::addon
