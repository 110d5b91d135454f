#include "engine/image/page_cache.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <string>

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U  // Linux 6.8
#endif

namespace pcow {
namespace {

// linux/magic.h has not all of them.
constexpr long kXfsMagic = 0x58465342;
constexpr long kF2fsMagic = 0xf2f52010;

// An id that no other mount gets until the host boots again. (The older kind of id is soon used
// again.)
uint64_t mount_of(const File& file) {
  struct statx found = {};
  if (statx(file.descriptor(), "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, &found) < 0) return 0;
  return found.stx_mask & STATX_MNT_ID_UNIQUE ? found.stx_mnt_id : 0;
}

// Each mounted ext4, xfs and f2fs has a directory in sysfs, named after its device. The directory
// is created when the filesystem is mounted, and its inode number is not used again. All mount
// namespaces see the same one.
uint64_t filesystem_of(long type, dev_t device) {
  const char* const kind = type == EXT4_SUPER_MAGIC ? "ext4"
                           : type == kXfsMagic      ? "xfs"
                           : type == kF2fsMagic     ? "f2fs"
                                                    : nullptr;
  if (!kind) return 0;
  const std::string link =
      "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
  char target[PATH_MAX];
  const ssize_t length = readlink(link.c_str(), target, sizeof target);
  if (length < 0) return 0;
  const std::string place(target, static_cast<size_t>(length));
  struct stat status;
  const std::string directory =
      std::string("/sys/fs/") + kind + "/" + place.substr(place.rfind('/') + 1);
  return stat(directory.c_str(), &status) < 0 ? 0 : status.st_ino;
}

bool inode_is_marked(const File& file) {
  uint64_t hint = RWH_WRITE_LIFE_NOT_SET;
  return fcntl(file.descriptor(), F_GET_RW_HINT, &hint) == 0 && hint != RWH_WRITE_LIFE_NOT_SET;
}

}  // namespace

CacheToken cache_token_of(const File& file) {
  CacheToken token;
  struct statfs type;
  auto status = file.status();
  if (!status || fstatfs(file.descriptor(), &type) < 0) return token;
  // An overlay is mounted again whenever its container starts, over a filesystem that stays
  // mounted, so it tells nothing.
  if (type.f_type == OVERLAYFS_SUPER_MAGIC) return token;
  token.device = status->st_dev;
  token.inode = status->st_ino;
  token.mount = mount_of(file);
  token.filesystem = filesystem_of(type.f_type, status->st_dev);
  return token;
}

void mark_inode(const File& file) {
  if (inode_is_marked(file)) return;
  uint64_t hint = RWH_WRITE_LIFE_NONE;
  (void)fcntl(file.descriptor(), F_SET_RW_HINT, &hint);  // the other two proofs remain
}

bool page_cache_survived(const File& file, const Superblock& superblock) {
  if (superblock.boot == Uuid{} || superblock.boot != boot_id()) return false;
  const CacheToken& then = superblock.cache;
  if (then == CacheToken{}) return true;  // only the boot id is known
  const CacheToken now = cache_token_of(file);
  if (now.device != then.device || now.inode != then.inode) return false;
  // Each of these proofs is enough. The mark goes with the inode: the kernel drops the inode when
  // it needs memory, but only after its pages are written back. Another container, or a bind mount,
  // is another mount of the same filesystem.
  return inode_is_marked(file) || (then.filesystem && now.filesystem == then.filesystem) ||
         (then.mount && now.mount == then.mount);
}

}  // namespace pcow
