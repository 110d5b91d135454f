// Fills a file or a disk with pages that tell where they belong, through a shared mapping, and
// checks them afterwards.
//
//   pattern fill PATH SEED [BYTES]     makes the file so long (a disk has its own size); prints "flushed N" after every
//                                      batch of pages, when msync has returned for all of the first
//                                      N
//   pattern verify PATH SEED [PAGES]   the first PAGES pages (all of them by default) must be what `fill` wrote
//
// Exit code: 0 all is well, 1 a page is wrong, 2 anything else.
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kPageSize = 4096, kWords = kPageSize / 8 - 4, kBatch = 256 };

struct page {
  uint64_t magic;
  uint64_t number;
  uint64_t seed;
  uint64_t words[kWords];
  uint64_t checksum;
};

_Static_assert(sizeof(struct page) == kPageSize, "a page of the pattern is a page of memory");

static const uint64_t kMagic = 0x4e52545441504350;  // "PCPATTRN"

static void die(const char* what, const char* path) {
  fprintf(stderr, "pattern: %s: %s: %s\n", what, path, strerror(errno));
  exit(2);
}

// FNV-1a over all words before the checksum.
static uint64_t checksum(const struct page* page) {
  uint64_t hash = 0xcbf29ce484222325;
  const uint64_t* words = (const uint64_t*)page;
  for (size_t i = 0; i < kPageSize / 8 - 1; i++) hash = (hash ^ words[i]) * 0x100000001b3;
  return hash;
}

static void make(struct page* page, uint64_t number, uint64_t seed) {
  page->magic = kMagic;
  page->number = number;
  page->seed = seed;
  uint64_t state = seed * 0x9e3779b97f4a7c15 + number;
  for (size_t i = 0; i < kWords; i++) {
    state = state * 6364136223846793005 + 1442695040888963407;
    page->words[i] = state;
  }
  page->checksum = checksum(page);
}

static uint64_t size_of(int fd, const char* path) {
  struct stat status;
  if (fstat(fd, &status) < 0) die("fstat", path);
  uint64_t size = (uint64_t)status.st_size;
  if (S_ISBLK(status.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0) die("BLKGETSIZE64", path);
  return size;
}

static int fill(const char* path, uint64_t seed, uint64_t bytes) {
  int fd = open(path, O_RDWR | O_CREAT, 0644);
  if (fd < 0) die("open", path);
  if (bytes > 0 && (ftruncate(fd, (off_t)bytes) < 0 || fsync(fd) < 0)) die("ftruncate", path);
  uint64_t pages = size_of(fd, path) / kPageSize;
  struct page* memory = mmap(NULL, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) die("mmap", path);
  for (uint64_t done = 0; done < pages;) {
    uint64_t first = done;
    while (done < pages && done < first + kBatch) {
      make(&memory[done], done, seed);
      done++;
    }
    if (msync(&memory[first], (done - first) * kPageSize, MS_SYNC) < 0) die("msync", path);
    printf("flushed %llu\n", (unsigned long long)done);
    fflush(stdout);
  }
  if (fsync(fd) < 0) die("fsync", path);
  return 0;
}

static int verify(const char* path, uint64_t seed, uint64_t pages) {
  int fd = open(path, O_RDONLY);
  if (fd < 0) die("open", path);
  uint64_t present = size_of(fd, path) / kPageSize;
  if (pages == 0) pages = present;
  if (pages == 0 || pages > present) {
    printf("%s has %llu pages, %llu are to be verified\n", path, (unsigned long long)present,
           (unsigned long long)pages);
    return 1;
  }
  const struct page* memory = mmap(NULL, pages * kPageSize, PROT_READ, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) die("mmap", path);
  static struct page expected;
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < pages; i++) {
    make(&expected, i, seed);
    if (memcmp(&memory[i], &expected, kPageSize) == 0) continue;
    const struct page* found = &memory[i];
    if (wrong++ < 8) {
      printf("page %llu: magic %016llx, number %llu, seed %llu, checksum %s\n",
             (unsigned long long)i, (unsigned long long)found->magic,
             (unsigned long long)found->number, (unsigned long long)found->seed,
             found->checksum == checksum(found) ? "right" : "wrong");
    }
  }
  printf("verified %llu pages, %llu wrong\n", (unsigned long long)pages, (unsigned long long)wrong);
  return wrong == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  uint64_t last = argc == 5 ? strtoull(argv[4], NULL, 0) : 0;
  if ((argc == 4 || argc == 5) && strcmp(argv[1], "fill") == 0)
    return fill(argv[2], strtoull(argv[3], NULL, 0), last);
  if ((argc == 4 || argc == 5) && strcmp(argv[1], "verify") == 0) {
    return verify(argv[2], strtoull(argv[3], NULL, 0), last);
  }
  fprintf(stderr, "usage: pattern fill PATH SEED [BYTES] | pattern verify PATH SEED [PAGES]\n");
  return 2;
}
