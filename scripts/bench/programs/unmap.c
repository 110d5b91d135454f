/*
 * What it costs to unmap a file of which every page is mapped: unmap FILE BYTES. Prints JSON. The
 * file is removed.
 */
#include "bench.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  size_t length = strtoull(argv[2], NULL, 10);
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, (off_t)length) < 0 || unlink(argv[1]) < 0) die(argv[1]);
  char* memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) die("mmap");
  for (size_t at = 0; at < length; at += 4096) memory[at] = 1;
  uint64_t before = now_ns();
  if (munmap(memory, length) < 0) die("munmap");
  printf("{\"milliseconds\":%.3f}\n", (double)(now_ns() - before) / 1e6);
  return 0;
}
