/*
 * Preloaded: records, in the file named by RECORD, which names are made and removed, and which
 * directories and files are synced. One line each: the word, then the paths. The test finds out
 * which names are not on the disk yet.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void record(const char* word, const char* first, const char* second) {
  const int saved = errno;
  const char* file = getenv("RECORD");
  char line[9000];
  const int length = snprintf(line, sizeof line, "%s %s %s\n", word, first, second);
  const int to =
      file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
  if (to >= 0) {
    if (syscall(SYS_write, to, line, length) != length) abort();
    syscall(SYS_close, to);
  }
  errno = saved;
}

static int synced(int number, int fd) {
  char link[40], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  const int outcome = (int)syscall(number, fd);
  if (outcome == 0 && length > 0) {
    path[length] = 0;
    record("sync", path, "");
  }
  return outcome;
}

int fsync(int fd) { return synced(SYS_fsync, fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, fd); }

int link(const char* from, const char* to) {
  const int outcome = (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
  if (outcome == 0) record("link", from, to);
  return outcome;
}

int rename(const char* from, const char* to) {
  const int outcome = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
  if (outcome == 0) record("rename", from, to);
  return outcome;
}

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
  const int outcome = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
  if (outcome == 0) record("rename", from, to);
  return outcome;
}

int unlink(const char* path) {
  const int outcome = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
  if (outcome == 0) record("unlink", path, "");
  return outcome;
}
