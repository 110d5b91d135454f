/*
 * Stores numbers into a shared mapping of a file, each to a page of its own choice, and says each
 * number once it is stored: by a word in memory that it shares with whoever reads PROGRESS, so that
 * there is no time between. What was said must be there whatever dies afterwards.
 *
 *   stored-numbers FILE PROGRESS PAGES FIRST
 *
 * PROGRESS is a plain file of one page: at 0 the last number that was stored, at 8 the last one
 * that a flush has returned for. Ends with an error where a flush fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPage = 4096, kFlushEvery = 16 };

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const uint64_t pages = strtoull(argv[3], NULL, 10);
  const int fd = open(argv[1], O_RDWR);
  const int said = open(argv[2], O_RDWR);
  if (fd < 0 || said < 0) return perror("open"), 1;
  _Atomic uint64_t* progress = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, said, 0);
  char* base = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED || (void*)progress == MAP_FAILED) return perror("mmap"), 1;
  puts("mapped");
  fflush(stdout);
  for (uint64_t number = strtoull(argv[4], NULL, 10);; ++number) {
    const uint64_t offset = number * 37 % pages * kPage;
    *(volatile uint64_t*)(base + offset) = number;
    atomic_store(&progress[0], number);
    if (number % kFlushEvery) continue;
    if (msync(base + offset, kPage, MS_SYNC) != 0) return perror("msync"), 1;
    if (number % (8 * kFlushEvery) == 0 && fsync(fd) != 0) return perror("fsync"), 1;
    atomic_store(&progress[1], number);
  }
}
