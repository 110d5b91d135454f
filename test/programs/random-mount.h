/* Mounts that die, or end, while a program works on their files, and mounts that replace them. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { FUSE_SUPER_MAGIC = 0x65735546, LOOK_AGAIN_US = 10000 };

/*
 * Whether an open file belongs to a living mount. While the mount is dying, this waits for the
 * result.
 */
static inline bool lives(int fd) {
  struct statfs found;
  return fstatfs(fd, &found) == 0 && found.f_type == FUSE_SUPER_MAGIC;
}

/*
 * Whether this is how open(2) fails if the mount of a path has died, or has ended, and there is no
 * other one yet.
 */
static inline bool means_no_mount(int err) {
  return err == ENOTCONN || err == ECONNABORTED || err == ENOENT;
}

/* Opens a file of a mount; of the next mount if there is none. -1: another error. */
static inline int open_in_mount(const char* path, int flags) {
  for (;;) {
    const int fd = open(path, flags | O_CLOEXEC);
    if (fd >= 0 && lives(fd)) return fd;
    if (fd >= 0) {
      close(fd);
    } else if (!means_no_mount(errno)) {
      return -1;
    }
    usleep(LOOK_AGAIN_US);
  }
}
