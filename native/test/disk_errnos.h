// Every errno with which a disk or a filesystem may fail a call of the engine, so that no test
// relies on a few well-known ones.
#pragma once

#include <cerrno>

inline constexpr int kDiskErrnos[] = {
    // What the block layer returns for a device's status: the whole of blk_errors[] in the kernel's
    // block/blk-core.c (Linux 6.18). If a write-back fails in the background, each becomes the
    // result of the next fdatasync(2), msync(2) or sync_file_range(2).
    EOPNOTSUPP,    // BLK_STS_NOTSUPP
    ETIMEDOUT,     // BLK_STS_TIMEOUT
    ENOSPC,        // BLK_STS_NOSPC: thin provisioning below us is full
    ENOLINK,       // BLK_STS_TRANSPORT
    EREMOTEIO,     // BLK_STS_TARGET
    EBADE,         // BLK_STS_RESV_CONFLICT
    ENODATA,       // BLK_STS_MEDIUM
    EILSEQ,        // BLK_STS_PROTECTION
    ENOMEM,        // BLK_STS_RESOURCE
    EBUSY,         // BLK_STS_DEV_RESOURCE
    EAGAIN,        // BLK_STS_AGAIN
    ENODEV,        // BLK_STS_OFFLINE
    EREMCHG,       // BLK_STS_DM_REQUEUE
    ETOOMANYREFS,  // BLK_STS_ZONE_OPEN_RESOURCE
    EOVERFLOW,     // BLK_STS_ZONE_ACTIVE_RESOURCE
    ETIME,         // BLK_STS_DURATION_LIMIT
    EINVAL,        // BLK_STS_INVAL
    EIO,           // BLK_STS_IOERR, and every number that is not in the table
    // Filesystems: quota, a read-only remount after an error, EFSCORRUPTED and EFSBADCRC (ext4,
    // XFS, btrfs), a forced shutdown, the largest file, immutable files, encryption without its
    // key, a server's stale handle or refusal, a dead FUSE daemon and its possible answers, a
    // device that is gone.
    EDQUOT, EROFS, EUCLEAN, EBADMSG, ESHUTDOWN, EFBIG, EPERM, EACCES, ENOKEY, EKEYREVOKED, ESTALE,
    ENOTCONN, ECONNABORTED, ENOSYS, EPROTO, ENXIO, ETXTBSY, EINTR,
    // Full tables: of the process, of the host.
    EMFILE, ENFILE};
