/*
 * On the host or in the guest: small accesses to a file that are made durable, for a time.
 *
 *   durable FILE BYTES SIZE seq|random flush|msync|fdatasync|load|pread SECONDS [STAT]
 *
 * flush: a store into the mapping, each page of which was stored to before, then the processor's
 * flush and fence. msync: the same, then msync. fdatasync: pwrite and fdatasync. load: reads the
 * mapping. pread: O_DIRECT where the size allows it. Prints JSON; with STAT, the statistics of a
 * disk in /sys (Documentation/admin-guide/iostats.rst), also what has gone to that disk meanwhile.
 */
#include <emmintrin.h>
#include <inttypes.h>

#include "bench.h"

static uint64_t bytes_written(const char* stat) {
  uint64_t sectors = 0;
  FILE* file = stat ? fopen(stat, "r") : NULL;
  if (stat && (!file || fscanf(file, "%*s %*s %*s %*s %*s %*s %" SCNu64, &sectors) != 1)) die(stat);
  if (file) fclose(file);
  return sectors * 512;
}

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) return 2;
  const char *path = argv[1], *how = argv[5];
  size_t length = strtoull(argv[2], NULL, 10), size = strtoull(argv[3], NULL, 10),
         slots = length / size;
  int shuffled = strcmp(argv[4], "random") == 0,
      reads = strcmp(how, "load") == 0 || strcmp(how, "pread") == 0;
  int mapped = !reads ? *how != 'f' || how[1] == 'l' : *how == 'l';
  double duration = atof(argv[6]);
  int file =
      open(path, O_RDWR | O_CREAT | (strcmp(how, "pread") == 0 && size % 4096 == 0 ? O_DIRECT : 0),
           0600);
  struct stat status;
  if (file < 0 || fstat(file, &status) < 0) die(path);
  char *memory = NULL, *buffer = NULL;
  if (posix_memalign((void**)&buffer, 4096, 1 << 20)) die("memory");
  memset(buffer, 'd', 1 << 20);
  for (size_t at = (size_t)status.st_size; at < length; at += 1 << 20)
    if (pwrite(file, buffer, 1 << 20, (off_t)at) != 1 << 20) die("pwrite");
  if (mapped) {
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) die("mmap");
  }
  // Otherwise half of the random stores, more or less, are the guest's own page faults.
  for (size_t at = 0; mapped && !reads && at < length; at += 4096)
    *(volatile char*)(memory + at) = 'd';
  // The first msync must not include the pages that this has dirtied. (Without msync: a clean page
  // would fault once more.)
  if (*how == 'm' && fsync(file) < 0) die("fsync");
  static struct latencies all;
  static volatile uint64_t sink;
  const char* stat = argc == 8 ? argv[7] : NULL;
  uint64_t written = bytes_written(stat);
  uint64_t seed = 88172645463325252ull, began = now_ns(), before = began, operations = 0;
  while ((double)(before - began) < duration * 1e9) {
    size_t offset = (shuffled ? next_random(&seed) % slots : operations % slots) * size;
    char* at = memory + offset;
    if (mapped && !reads) {
      memset(at, (int)operations, size);
      if (*how == 'f') {
        for (size_t line = 0; line < size; line += 64) _mm_clflush(at + line);
        _mm_sfence();
      } else if (msync(memory + offset / 4096 * 4096, 4096, MS_SYNC) < 0) {
        die("msync");
      }
    } else if (mapped) {
      for (size_t word = 0; word < size; word += 64) sink += *(volatile uint64_t*)(at + word);
    } else if (reads) {
      if (pread(file, buffer, size, (off_t)offset) != (ssize_t)size) die("pread");
    } else {
      if (pwrite(file, buffer, size, (off_t)offset) != (ssize_t)size || fdatasync(file) < 0)
        die("fdatasync");
    }
    uint64_t after = now_ns();
    add_latency(&all, after - before);
    before = after;
    operations++;
  }
  printf("{\"bytesWritten\":%.0f,\"perSecond\":%.2f,",
         (double)(bytes_written(stat) - written) / (double)operations,
         (double)operations / ((double)(before - began) / 1e9));
  print_latencies(&all);
  printf("}\n");
  return 0;
}
