/*
 * Reads and stores at random in a mapping of an image, until the input ends, and checks everything
 * that it reads: what it has stored, and around that what the image's base holds.
 *
 *   base-guest MODEL FILE BASE SEED
 *
 * Word i of page p of the base with number BASE is BASE << 56 | p << 16 | i; every third page is
 * full of zeros. MODEL is a plain file, in which the next process finds what this one has stored.
 * Ends with "ok", or with what is wrong.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
  PAGE = 4096,
  WORDS = PAGE / 8,
  MOST_PAGES = 1 << 14,
  LONGEST_READ = 400,
  LONGEST_STORE = 8,
  BATCH = 16
};

/* Each page has one word that is stored to. */
struct model {
  uint64_t page, value; /* of the store that is being done, or was last */
  uint64_t values[MOST_PAGES];
};

static volatile struct model* model;
static uint64_t* memory;
static uint64_t pages, base;
static unsigned seed;
static int pipes[2];

static unsigned below(unsigned limit) {
  seed = seed * 1664525u + 1013904223u;
  return (unsigned)((uint64_t)seed * limit >> 32);
}

static uint64_t* cell_of(uint64_t page) { return memory + page * WORDS + page * 7 % WORDS; }

static void check(uint64_t page) {
  const uint64_t value = model->values[page];
  for (uint64_t i = 0; i < WORDS; i++) {
    const uint64_t of_base = page % 3 == 2 ? 0 : base << 56 | page << 16 | i;
    const uint64_t expected = value && i == page * 7 % WORDS ? value : of_base;
    const uint64_t found = ((volatile uint64_t*)memory)[page * WORDS + i];
    if (found == expected) continue;
    printf("page %lu, word %lu is %016lx, not %016lx\n", (unsigned long)page, (unsigned long)i,
           (unsigned long)found, (unsigned long)expected);
    exit(1);
  }
}

static void check_all(void) {
  for (uint64_t page = 0; page < pages; page++) check(page);
}

static void store(uint64_t page) {
  uint64_t value = (uint64_t)below(1u << 30) << 20 | 1;
  struct iovec from = {&value, 8}, to = {cell_of(page), 8};
  model->page = page;
  model->value = value;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  switch (below(4)) {
    case 0:
      if (write(pipes[1], &value, 8) != 8 || read(pipes[0], cell_of(page), 8) != 8) exit(2);
      break;
    case 1:
      if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != 8) exit(2);
      break;
    default: *(volatile uint64_t*)cell_of(page) = value;
  }
  model->values[page] = value;
}

static void step(void) {
  const uint64_t page = below((unsigned)pages);
  const uint64_t some = page + 1 + below(LONGEST_STORE), end = some < pages ? some : pages;
  switch (below(10)) {
    case 0:
      for (uint64_t at = page; at < pages && at < page + LONGEST_READ; at++) check(at);
      return;
    case 1: (void)!madvise(memory + page * WORDS, (end - page) * PAGE, MADV_DONTNEED); return;
    case 2:
    case 3:
      for (uint64_t at = page; at < end; at++) store(at);
      return;
    case 4:
    case 5: store(page); return;
    default: check(page);
  }
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  const int file = open(argv[2], O_RDWR);
  const int kept = open(argv[1], O_RDWR | O_CREAT, 0600);
  struct stat status;
  if (file < 0 || kept < 0 || fstat(file, &status) < 0 ||
      ftruncate(kept, sizeof(struct model)) < 0 || pipe(pipes) < 0)
    return perror("open"), 1;
  base = strtoull(argv[3], NULL, 10);
  seed = (unsigned)strtoul(argv[4], NULL, 10);
  pages = (uint64_t)status.st_size / PAGE;
  if (pages > MOST_PAGES) return 2;
  model = mmap(NULL, sizeof(struct model), PROT_READ | PROT_WRITE, MAP_SHARED, kept, 0);
  memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (model == MAP_FAILED || memory == MAP_FAILED) return perror("mmap"), 1;
  puts("mapped");
  /* The store in whose middle an earlier process died. */
  if (model->value && *cell_of(model->page) == model->value)
    model->values[model->page] = model->value;
  check_all();
  for (struct pollfd input = {0, POLLIN | POLLHUP, 0}; poll(&input, 1, 1) == 0;)
    for (int i = 0; i < BATCH; i++) step();
  check_all();
  puts("ok");
  return 0;
}
