// Whether what a writer has left unsynced is still there (docs/format.md, "After a host crash").
//
// A writer that dies loses nothing, as long as the kernel goes on with the same pages of the file. The id of this boot of
// the host is not enough to know that: a filesystem may have been shut down and mounted again since, or the device copied
// while the image was open. What tells is that the inode has stayed in memory, or that the filesystem has stayed mounted.
#pragma once

#include "engine/disk/file.h"
#include "engine/format/superblock.h"

namespace pcow {

// What a writer stores in the superblock when it opens the file.
CacheToken cache_token_of(const File& file);

// Marks the inode in memory: it has a write-life hint (fcntl(2), F_SET_RW_HINT) from then on, "none", which changes
// nothing and is stored nowhere. Only after the superblock with the token is on the disk: with an older token the mark
// would vouch for pages that it knows nothing of. It need not succeed.
void mark_inode(const File& file);

// Whether everything that the last writer did counts: the host has not been started anew since, and the kernel has either
// kept the file's pages or written them back.
bool page_cache_survived(const File& file, const Superblock& superblock);

}  // namespace pcow
