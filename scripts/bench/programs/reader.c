/*
 * One of many processes that read the same: reader FILE shared|private. Maps the file for reading
 * and writing. The first line of input lets it read every page once: {"seconds":S}. The second:
 * {"kib":K}, the memory that counts as its own (Pss: a page that N processes map counts 1/N).
 */
#include "bench.h"

static long proportional(void) {
  FILE* rollup = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  long kib = -1;
  while (rollup && fgets(line, sizeof line, rollup)) sscanf(line, "Pss: %ld", &kib);
  if (kib < 0) die("/proc/self/smaps_rollup");
  fclose(rollup);
  return kib;
}

static void wait_for_line(void) {
  for (int c = 0; c != '\n';)
    if ((c = getchar()) == EOF) exit(0);
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  int file = open(argv[1], O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status) < 0) die(argv[1]);
  size_t length = (size_t)status.st_size;
  int kind = strcmp(argv[2], "private") == 0 ? MAP_PRIVATE : MAP_SHARED;
  volatile char* memory = mmap(NULL, length, PROT_READ | PROT_WRITE, kind, file, 0);
  if (memory == MAP_FAILED) die("mmap");
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  wait_for_line();
  uint64_t before = now_ns();
  for (size_t at = 0; at < length; at += 4096) (void)memory[at];
  printf("{\"seconds\":%.6f}\n", (double)(now_ns() - before) / 1e9);
  for (;;) {
    wait_for_line();
    printf("{\"kib\":%ld}\n", proportional());
  }
}
