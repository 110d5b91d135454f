/*
 * A guest's nvdimm without its guest: maps FILE with the system calls of QEMU's memory-backend-file
 * with share=on and pmem=on (util/mmap-alloc.c, softmmu/physmem.c), and does what a guest does with
 * it: it stores, flushes the cache lines and fences. Nothing else makes a store durable.
 *
 *   nvdimm FILE
 *     store OFFSET LENGTH BYTE   fills a range, and flushes it
 *     read OFFSET                the byte there
 * Says first whether the kernel has granted MAP_SYNC; without it, QEMU continues, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <x86intrin.h>

enum { ALIGN = 2 << 20, PAGE = 4096, LINE = 64 };

/* qemu_ram_mmap(): an aligned place, with a guard page behind it, that the file is mapped over. */
static char* map(int fd, size_t size, const char** how) {
  const size_t total = size + ALIGN;
  char* const guard = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (guard == MAP_FAILED) return MAP_FAILED;
  const size_t before = (size_t)(-(uintptr_t)guard & (ALIGN - 1));
  const int flags = MAP_FIXED | MAP_SHARED;
  *how = "mapped with MAP_SYNC";
  char* base = mmap(guard + before, size, PROT_READ | PROT_WRITE,
                    flags | MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
  if (base == MAP_FAILED) {
    *how = errno == EOPNOTSUPP ? "mapped without MAP_SYNC" : strerror(errno);
    base = mmap(guard + before, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  }
  if (base == MAP_FAILED) return MAP_FAILED;
  if (before > 0) munmap(guard, before);
  if (total - before > size + PAGE) munmap(base + size + PAGE, total - before - size - PAGE);
  madvise(base, size, MADV_HUGEPAGE);
  madvise(base, size, MADV_DONTFORK);
  return base;
}

static void store(char* from, size_t length, int byte) {
  memset(from, byte, length);
  const uintptr_t end = (uintptr_t)from + length;
  for (uintptr_t line = (uintptr_t)from & ~(uintptr_t)(LINE - 1); line < end; line += LINE)
    _mm_clflush((void*)line);
  _mm_sfence();
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return perror(argv[1]), 1;
  const char* how = "";
  char* const base = map(fd, (size_t)status.st_size, &how);
  if (base == MAP_FAILED) return perror("mmap"), 1;
  puts(how);
  fflush(stdout);
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    size_t offset, length;
    int byte;
    if (sscanf(line, "store %zu %zu %d", &offset, &length, &byte) == 3) {
      store(base + offset, length, byte);
      puts("ok");
    } else if (sscanf(line, "read %zu", &offset) == 1) {
      printf("%u\n", (unsigned char)base[offset]);
    } else {
      return 2;
    }
    fflush(stdout);
  }
  return 0;
}
