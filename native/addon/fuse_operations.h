// The native operations table of a mount.
//
// fuse-native gives libfuse a table of functions that all go through JavaScript. This addon exports
// its own fuse_new, which the dynamic linker finds before libfuse's. It replaces the operations on
// bytes in that table, and calls the real fuse_new. It also exports fuse_loop_mt: the threads that
// take requests from the kernel are those of fuse_loop. src/engine/native-operations.ts describes
// in which order everything is loaded, and which requests go where.
//
// Threads: prepare_fuse() and fuse_new run on the JavaScript thread, before the mount's first
// request. The operations run on the loop's threads, any number at a time. An operation may take as
// long as the disk does: the loop starts another thread when all are busy.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/error.h"

namespace pcow::addon {

// Loads libfuse, so that fuse-native finds libfuse.so.2 on machines that have only fuse3. Opens the
// image directory, for statfs and utimens. Once in a process.
Result<void> prepare_fuse(const std::string& libfuse, const std::string& directory);

// `hook` is called on a thread of the loop when the mount has ended, for whatever reason. Call this
// before the mount's first request.
void set_fuse_end(std::function<void()> hook);

// How many mounts got the table: 0 or 1.
uint64_t fuse_interceptions();

// How many requests were served natively.
uint64_t fuse_requests();

}  // namespace pcow::addon
