/*
 * Writes pages at random places of a file, and syncs it.
 *
 *   scatter write|store FILE BYTES PAGES
 *
 * "store" maps the file. Prints JSON: how many bytes of different pages were written.
 */
#include "bench.h"

enum { PAGE = 4096 };

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  size_t length = strtoull(argv[3], NULL, 10), count = strtoull(argv[4], NULL, 10), written = 0;
  int file = open(argv[2], O_RDWR);
  if (file < 0) die(argv[2]);
  char* memory = NULL;
  if (strcmp(argv[1], "store") == 0) {
    memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) die("mmap");
  }
  char* seen = calloc(length / PAGE, 1);
  static char page[PAGE];
  memset(page, 's', PAGE);
  uint64_t seed = 88172645463325252ull;
  if (!seen) die("calloc");
  for (size_t i = 0; i < count; i++) {
    size_t number = next_random(&seed) % (length / PAGE);
    if (memory)
      memcpy(memory + number * PAGE, page, PAGE);
    else if (pwrite(file, page, PAGE, (off_t)(number * PAGE)) != PAGE)
      die("pwrite");
    if (!seen[number]) written += PAGE;
    seen[number] = 1;
  }
  if (fsync(file) < 0) die("fsync");
  printf("{\"written\":%zu}\n", written);
  return 0;
}
