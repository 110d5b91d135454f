// The connection to the kernel, with a better answer to FUSE_INIT than libfuse 2.9 gives: requests
// of up to 1 MiB instead of 128 KiB, and no request for security.capability before every write(2).
//
// libfuse 2.9 speaks version 7.19 of the protocol, which has neither. But the kernel accepts both
// from any server that sets the flags it offers. So this channel completes the answer to the first
// request (FUSE_INIT) before it is sent.
//
// Threads: those of fuse_loop, any number at a time. The first request is answered before the
// kernel sends a second one.
#pragma once

#define FUSE_USE_VERSION 29
#include <fuse.h>
#include <fuse_lowlevel.h>

#include <chrono>
#include <cstdint>

namespace pcow::addon {

// Makes a channel in front of `channel`, which its owner keeps and which must outlive it. libfuse
// destroys the new channel with the session. `libfuse` is the open library. Returns null if the
// library lacks a function: then use `channel` itself.
fuse_chan* make_fuse_channel(void* libfuse, fuse_chan* channel);

// The next answer that this thread gives to the request `unique` lets the kernel keep the name (the
// answer to a look-up) or the attributes (the answer to a question about attributes).
void let_kernel_keep(uint64_t unique, std::chrono::seconds valid);

// Whether files that bypass the page cache can be mapped nevertheless: kernel 6.6 and later.
bool fuse_maps_direct_files();

}  // namespace pcow::addon
