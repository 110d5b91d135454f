/*
 * A shared mapping of a whole file, for tests: one command a line on stdin, one answer a line on
 * stdout.
 *
 *   map-tool FILE
 *     write OFFSET LENGTH BYTE   fills a range
 *     read OFFSET                the byte there
 *     dump FILE                  writes all of the mapping to a file, by write(2) from the mapped memory
 *     unmap                      takes the mapping away; nothing else can be done afterwards
 *     sync                       msync of everything
 *     punch OFFSET LENGTH        fallocate(PUNCH_HOLE)
 *     reopen                     opens the file once more: by that descriptor punch goes from then on
 *     reopen-next                the same, by the next mount, as soon as there is one
 *     another                    maps the whole file once more by that descriptor, and compares; then that mapping goes
 *     chroot DIRECTORY           has that directory for its root and working directory from then on
 *     threads COUNT              starts threads that do nothing
 *     vfork                      waits, without an answer, for a child that shares the mapping and never ends
 *     control FILE TEXT          writes TEXT to a control file; answers "ok", or the number of the error
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "random-mount.h"

/* A function of its own, so that the child has no variables of main() in registers. */
static void __attribute__((noinline)) wait_for_child(void) {
  if (vfork() == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
}

static void* do_nothing(void* unused) {
  for (;;) pause();
  return unused;
}

static int start_threads(size_t count) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  int error = 0;
  pthread_t thread;
  while (count-- > 0 && error == 0) error = pthread_create(&thread, &small, do_nothing, NULL);
  return error;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return perror(argv[1]), 1;
  unsigned char* base =
      mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return perror("mmap"), 1;
  puts("mapped");
  fflush(stdout);
  char line[4096], file[2048], text[1024];
  while (fgets(line, sizeof line, stdin)) {
    size_t offset, length;
    unsigned byte;
    int error = 0;
    if (sscanf(line, "write %zu %zu %u", &offset, &length, &byte) == 3) {
      memset(base + offset, (int)byte, length);
    } else if (sscanf(line, "read %zu", &offset) == 1) {
      printf("%u\n", base[offset]);
      fflush(stdout);
      continue;
    } else if (sscanf(line, "dump %2047s", file) == 1) {
      const int to = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
      for (off_t done = 0; done < status.st_size && !error;) {
        const ssize_t count = write(to, base + done, (size_t)(status.st_size - done));
        if (count < 0) error = errno;
        done += count;
      }
      close(to);
    } else if (sscanf(line, "punch %zu %zu", &offset, &length) == 2) {
      error =
          fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length)
              ? errno
              : 0;
    } else if (sscanf(line, "control %2047s %1023s", file, text) == 2) {
      const int control = open(file, O_WRONLY);
      error = control < 0 || write(control, text, strlen(text)) < 0 ? errno : 0;
      if (control >= 0) close(control);
    } else if (sscanf(line, "chroot %2047s", file) == 1) {
      error = chroot(file) || chdir("/") ? errno : 0;
    } else if (strcmp(line, "reopen\n") == 0) {
      close(fd);
      fd = open(argv[1], O_RDWR);
      error = fd < 0 ? errno : 0;
    } else if (strcmp(line, "reopen-next\n") == 0) {
      close(fd);
      fd = open_in_mount(argv[1], O_RDWR);
      error = fd < 0 ? errno : 0;
    } else if (sscanf(line, "threads %zu", &length) == 1) {
      error = start_threads(length);
    } else if (strcmp(line, "vfork\n") == 0) {
      wait_for_child();
    } else if (strcmp(line, "another\n") == 0) {
      unsigned char* other =
          mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      error = other == MAP_FAILED ? errno : memcmp(other, base, (size_t)status.st_size) ? -1 : 0;
      if (other != MAP_FAILED) munmap(other, (size_t)status.st_size);
    } else if (strcmp(line, "unmap\n") == 0) {
      error = munmap(base, (size_t)status.st_size) ? errno : 0;
    } else if (strcmp(line, "sync\n") == 0) {
      error = msync(base, (size_t)status.st_size, MS_SYNC) ? errno : 0;
    } else {
      return 2;
    }
    if (error) {
      printf("%d\n", error);
    } else {
      puts("ok");
    }
    fflush(stdout);
  }
  return 0;
}
