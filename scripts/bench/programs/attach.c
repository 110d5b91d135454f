/*
 * Measures how long a shared mapping of FILE takes; under the monitor: attaching. attach FILE.
 * Prints JSON.
 */
#include "bench.h"

int main(int argc, char** argv) {
  struct stat status;
  int file = argc == 2 ? open(argv[1], O_RDWR) : -1;
  if (file < 0 || fstat(file, &status) < 0) die("attach");
  uint64_t before = now_ns();
  char* memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  uint64_t after = now_ns();
  if (memory == MAP_FAILED) die("mmap");
  munmap(memory, (size_t)status.st_size);
  printf("{\"milliseconds\":%.3f}\n", (double)(after - before) / 1e6);
  return 0;
}
