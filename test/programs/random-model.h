/*
 * What several threads have done to an image, in a file on tmpfs that survives them: enough to know
 * what each page must hold.
 *
 * Every page belongs to one thread, which alone changes it. A thread records what it is about to
 * do, does it, and counts it as done. So whatever is seen of its pages, in a snapshot or after a
 * death, is their state after one of its steps, the same step for all pages: not before the steps
 * that were done when the check began, and not after the steps that were begun when it ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  PAGE = 4096,
  CELLS = 8,
  CELL_STRIDE = PAGE / CELLS,
  THREADS = 4,
  PAGES = 2048,
  STEPS = 1 << 22,
  BASE = 0x55
};

#define MUST(condition)                                                               \
  do {                                                                                \
    if (!(condition)) {                                                               \
      dprintf(1, "%s:%d: not true: %s (errno: %s)\n", __FILE__, __LINE__, #condition, \
              strerrorname_np(errno));                                                \
      _exit(1);                                                                       \
    }                                                                                 \
  } while (0)

enum kind {
  STORE, /* a cell */
  FILL,  /* a page */
  ZERO   /* `extra` pages */
};

struct step {
  uint32_t kind : 2, page : 14, extra : 16; /* `extra`: the cell, or how many pages */
};

struct log {
  _Atomic uint64_t begun, done;
  struct step steps[STEPS];
};

struct model {
  struct log logs[THREADS];
};

/* The content of a page: `fill` everywhere except in its cells, which have 8 bytes each. */
struct page {
  uint8_t fill;
  uint64_t cells[CELLS];
};

/*
 * In the first half, neighbouring pages belong to different threads. In the second half, each
 * thread has a quarter, for operations on runs.
 */
static inline int owner_of(uint32_t page) {
  return page < PAGES / 2 ? (int)(page % THREADS)
                          : (int)((page - PAGES / 2) / (PAGES / 2 / THREADS));
}

static inline uint64_t mark_of(int thread, uint64_t step) {
  return (uint64_t)(thread + 1) << 56 | step;
}

static inline struct model* open_model(const char* path) {
  const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  MUST(fd >= 0 && ftruncate(fd, sizeof(struct model)) == 0);
  struct model* model = mmap(NULL, sizeof *model, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  MUST(model != MAP_FAILED);
  close(fd);
  return model;
}

static inline void begin_with(struct page* pages) {
  for (uint32_t at = 0; at < PAGES; at++) memset(&pages[at], BASE, sizeof pages[at]);
}

/* `number` counts from 1. */
static inline void apply(struct page* pages, int thread, struct step step, uint64_t number) {
  struct page* page = &pages[step.page];
  const uint64_t mark = mark_of(thread, number);
  switch ((enum kind)step.kind) {
    case STORE: page->cells[step.extra] = mark; return;
    case FILL:
      page->fill = (uint8_t)(1 + number % 251);
      for (int cell = 0; cell < CELLS; cell++) page->cells[cell] = mark;
      return;
    case ZERO: memset(page, 0, step.extra * sizeof *page); return;
  }
}

static inline void bytes_of(const struct page* page, uint8_t* bytes) {
  memset(bytes, page->fill, PAGE);
  for (int cell = 0; cell < CELLS; cell++)
    memcpy(bytes + cell * CELL_STRIDE, &page->cells[cell], 8);
}

static inline bool is_page(const void* bytes, const struct page* page) {
  uint8_t expected[PAGE];
  bytes_of(page, expected);
  return memcmp(bytes, expected, PAGE) == 0;
}
