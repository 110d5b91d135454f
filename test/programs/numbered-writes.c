/*
 * Writes numbers into a file, each to a page of its own choice, and says each number once it is
 * written: what was said must be there whatever dies afterwards. Ends at the first write that
 * fails. test/mount/deaths.test.ts reads the file.
 *
 *   numbered-writes FILE write|msync PAGES FIRST
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPage = 4096 };

static void end(int number) {
  (void)number;
  _exit(0);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int mapped = strcmp(argv[2], "msync") == 0;
  const uint64_t pages = strtoull(argv[3], NULL, 10);
  const int fd = open(argv[1], O_RDWR);
  if (fd < 0) return perror("open"), 1;
  char* base = NULL;
  if (mapped) {
    signal(SIGBUS, end); /* the mount has died */
    base = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return perror("mmap"), 1;
  }
  for (uint64_t number = strtoull(argv[4], NULL, 10);; ++number) {
    const uint64_t offset = number * 37 % pages * kPage;
    if (mapped) {
      *(uint64_t*)(base + offset) = number;
      if (msync(base + offset, kPage, MS_SYNC) != 0) return 0;
    } else if (pwrite(fd, &number, sizeof number, (off_t)offset) != sizeof number) {
      return 0;
    }
    char line[32];
    const int length = snprintf(line, sizeof line, "%llu\n", (unsigned long long)number);
    if (write(STDOUT_FILENO, line, (size_t)length) != length) return 0;
  }
}
