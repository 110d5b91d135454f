/*
 * Ways to make a run of a file ready for first touches: how long it takes, and how long the touches
 * then take.
 *
 *   runs FILE BYTES WAY
 *
 * WAY has a letter for each step, done for every 2 MiB of the sparse FILE before its pages are
 * written, one after another, by the same thread: a (fallocate), z (pwrite of zeros), m (mmap), h
 * (MADV_HUGEPAGE), p (MADV_POPULATE_WRITE). Prints JSON: microseconds a MiB.
 */
#include "bench.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { RUN = 2 << 20, PAGE = 4096 };
static char zeros[RUN];

static void make_ready(int file, char* memory, off_t at, const char* way) {
  for (; *way; way++) {
    switch (*way) {
      case 'a':
        if (fallocate(file, 0, at, RUN)) die("fallocate");
        break;
      case 'z':
        if (pwrite(file, zeros, RUN, at) != RUN) die("pwrite");
        break;
      case 'm':
        if (mmap(memory, RUN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, at) ==
            MAP_FAILED)
          die("mmap");
        break;
      case 'h':
        if (madvise(memory, RUN, MADV_HUGEPAGE)) die("MADV_HUGEPAGE");
        break;
      case 'p':
        if (madvise(memory, RUN, MADV_POPULATE_WRITE)) die("MADV_POPULATE_WRITE");
        break;
      default: exit(2);
    }
  }
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  size_t length = strtoull(argv[2], NULL, 10) / RUN * RUN;
  int file = open(argv[1], O_RDWR);
  if (file < 0) die(argv[1]);
  char* reserved =
      mmap(NULL, length + RUN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) die("mmap");
  char* memory = (char*)(((uintptr_t)reserved + RUN - 1) / RUN * RUN);
  pin(0, 0);
  warm_memory(2 * length);
  uint64_t made = 0, touched = 0;
  for (size_t at = 0; at < length; at += RUN) {
    uint64_t before = now_ns();
    make_ready(file, memory + at, (off_t)at, argv[3]);
    uint64_t ready = now_ns();
    for (size_t within = 0; within < RUN; within += PAGE) memset(memory + at + within, 'w', PAGE);
    made += ready - before;
    touched += now_ns() - ready;
  }
  double mebibytes = (double)length / (1 << 20);
  printf("{\"made\":%.1f,\"touched\":%.1f}\n", (double)made / 1e3 / mebibytes,
         (double)touched / 1e3 / mebibytes);
  return 0;
}
