/*
 * Writes into a shared mapping of a file, with several threads and in causal order, until it is
 * killed. test/mount/cut.ts checks what a snapshot holds of it.
 *
 *   cut-writer FILE THREADS PAGES [FILE...]
 *
 * With several files each is an equal part of what is written, in their order.
 *
 * Thread j owns PAGES pages. Its write number s (from 1) goes to the page of slot s % PAGES: a
 * record of s and, for each thread k, of the number of the last write of k that had happened
 * before. So a cut is consistent when for every thread it holds all of its writes up to one of
 * them, and for every record in it also the writes that the record has seen. A thread that does not
 * find its own record of the round before in a slot ends the process with an error: a write was
 * lost, or read as zeros.
 *
 * After some writes a thread pauses for a millisecond, so that it leaves the processors to what is
 * tested. With PCOW_LONG it never pauses.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kMaxThreads = 64 };

struct Record {
  uint64_t seen[kMaxThreads];
  /*
   * Last, and written last: a record that was cut in the middle still has its old number, and has
   * seen no more than there was.
   */
  _Atomic uint64_t number;
};

static char* base;
static uint64_t threads, pages;
static uint64_t burst = 50; /* writes before a pause */
static const struct timespec pause_time = {.tv_nsec = 1000000};
static _Atomic uint64_t happened[kMaxThreads];

/* Consecutive writes go to distant pages, so that the kernel writes them back in another order. */
static uint64_t page_of(uint64_t slot) { return slot * 37 % pages; }

static void* write_for_ever(void* argument) {
  const uint64_t me = (uintptr_t)argument;
  for (uint64_t number = 1;; ++number) {
    struct Record* record = (struct Record*)(base + (me * pages + page_of(number % pages)) * kPage);
    if (number > pages && atomic_load(&record->number) != number - pages) {
      fprintf(stderr, "cut-writer: thread %lu: in place of write %lu there is %lu\n", me,
              number - pages, atomic_load(&record->number));
      abort();
    }
    for (uint64_t k = 0; k < threads; ++k) record->seen[k] = atomic_load(&happened[k]);
    atomic_store(&record->number, number);
    atomic_store(&happened[me], number);
    if (burst && number % burst == 0) nanosleep(&pause_time, NULL);
  }
  return NULL;
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  threads = strtoull(argv[2], NULL, 10);
  pages = strtoull(argv[3], NULL, 10);
  if (getenv("PCOW_LONG")) burst = 0;
  if (threads == 0 || threads > kMaxThreads || pages % 37 == 0) return 2;
  const size_t files = (size_t)argc - 3, length = threads * pages * kPage / files;
  if (threads * pages % files) return 2;
  base = mmap(NULL, files * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return perror("mmap"), 1;
  for (size_t i = 0; i < files; ++i) {
    const int fd = open(argv[i == 0 ? 1 : 3 + i], O_RDWR);
    if (fd < 0) return perror("open"), 1;
    if (mmap(base + i * length, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
        MAP_FAILED)
      return perror("mmap"), 1;
    close(fd);
  }
  for (uint64_t j = 1; j < threads; ++j) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, write_for_ever, (void*)(uintptr_t)j) != 0) return 1;
  }
  puts("writing");
  fflush(stdout);
  write_for_ever(NULL);
}
