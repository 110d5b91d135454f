// Whether what a writer has left unsynced still exists (docs/format.md, "After a host crash").
//
// A writer that dies loses nothing, as long as the kernel keeps the same pages of the file. That
// the host has not booted again is not enough to prove that: the filesystem may have been shut down
// and mounted again, or the device copied while the image was open. The proof is that the inode has
// stayed in memory, or that the filesystem has stayed mounted.
#pragma once

#include "engine/disk/file.h"
#include "engine/format/superblock.h"

namespace pcow {

// What a writer stores in the superblock when it opens the file.
CacheToken cache_token_of(const File& file);

// Marks the inode in memory with a write-life hint (fcntl(2), F_SET_RW_HINT) of "none", which
// changes nothing and is stored nowhere. Call it only after the superblock with the token is on the
// disk: with an older token the mark would vouch for pages about which it proves nothing. It may
// fail.
void mark_inode(const File& file);

// Whether everything that the last writer did counts: the host has not booted since, and the kernel
// has kept the file's pages or written them back.
bool page_cache_survived(const File& file, const Superblock& superblock);

}  // namespace pcow
