/* Maps FILE as QEMU maps a memory backend with pmem=on, and says what mmap(2) says of MAP_SYNC: "granted", or the error's name. Where it is
 * granted it stores through the mapping, flushes the cache line, and says what read(2) finds then.
 *
 *   map-sync FILE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <x86intrin.h>

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return perror(argv[1]), 1;
  char* base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE,
                    MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  if (base == MAP_FAILED) return puts(strerrorname_np(errno)), 0;
  puts("granted");
  static const char kText[] = "stored and flushed";
  memcpy(base + status.st_size / 2, kText, sizeof kText);
  _mm_clflush(base + status.st_size / 2);
  _mm_sfence();
  char found[sizeof kText];
  if (pread(fd, found, sizeof found, status.st_size / 2) != (ssize_t)sizeof found)
    return perror("pread"), 1;
  puts(memcmp(found, kText, sizeof found) == 0 ? "read back" : "something else was read");
  return 0;
}
