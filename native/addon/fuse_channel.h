// The connection to the kernel, with a better greeting than libfuse 2.9 gives it: requests of up to 1 MiB in place of 128 KiB, and
// no question for security.capability before every write(2).
//
// libfuse 2.9 speaks version 7.19 of the protocol, which knows neither; but the kernel takes both from whoever sets the flags that
// it offers. So the answer to its first request (FUSE_INIT) is completed on its way.
//
// Threads: those of fuse_loop, any number at a time. The first request is answered before there is a second one.
#pragma once

#define FUSE_USE_VERSION 29
#include <fuse.h>
#include <fuse_lowlevel.h>

namespace pcow::addon {

// Stands before `channel`, which stays its owner's and outlives it; libfuse destroys it with the session. `libfuse` is the open library.
// Null where that lacks something: then `channel` itself will do.
fuse_chan* make_fuse_channel(void* libfuse, fuse_chan* channel);

// Whether files that are opened past the page cache can be mapped all the same: kernel 6.6 and later.
bool fuse_maps_direct_files();

}  // namespace pcow::addon
