/*
 * Preloaded before the monitor, or into a mount: a disk that fails. While the file FAILING_DISK
 * contains the word "read" or "sync", pread(2) and fdatasync(2) of files whose path ends with
 * FAILING_FILE fail with EIO. In a process that maps an image, only the monitor makes these calls
 * on image files. While it contains "hang", pread(2) by the mount's clean store hangs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Uses system calls only: the functions belong to the libraries that are preloaded after this one.
 * The monitor's threads have their own descriptors.
 */
static int is_hit(int fd, const char* what) {
  const char* disk = getenv("FAILING_DISK");
  const char* file = getenv("FAILING_FILE");
  char link[40], path[4096], word[16] = "";
  if (!disk || !file) return 0;
  snprintf(link, sizeof link, "/proc/thread-self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  const size_t end = strlen(file);
  if (length < (ssize_t)end || memcmp(path + length - end, file, end) != 0) return 0;
  const int from = (int)syscall(SYS_openat, AT_FDCWD, disk, O_RDONLY | O_CLOEXEC);
  if (from < 0) return 0;
  syscall(SYS_read, from, word, sizeof word - 1);
  syscall(SYS_close, from);
  return strcmp(word, what) == 0;
}

static int fails(int fd, const char* what) {
  if (!is_hit(fd, what)) return 0;
  errno = EIO;
  return 1;
}

ssize_t pread64(int fd, void* buffer, size_t count, off64_t offset) {
  char thread[16] = "";
  prctl(PR_GET_NAME, thread);
  if (strcmp(thread, "pcow-store") == 0)
    while (is_hit(fd, "hang")) usleep(10000);
  return fails(fd, "read") ? -1 : syscall(SYS_pread64, fd, buffer, count, offset);
}

int fdatasync(int fd) {
  static int (*next)(int);
  if (!next) next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return fails(fd, "sync") ? -1 : next(fd);
}
