/*
 * Isolated bytes in a mapped file, one in each block, in an order without neighbours. Each block
 * must hold the byte 7 before. Commands, a line each on stdin:
 *
 *   isolated-bytes FILE BLOCKS BLOCK_SIZE
 *     fill BYTE     writes it into each block; says how many mappings the process had at the most
 *     check BYTE    says how many blocks do not hold it, or not the base's byte beside it any more
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPage = 4096, kLook = 500 };

static size_t mappings(void) {
  FILE* maps = fopen("/proc/self/maps", "r");
  size_t count = 0;
  for (int letter; (letter = fgetc(maps)) != EOF;) count += letter == '\n';
  fclose(maps);
  return count;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const size_t blocks = strtoull(argv[2], NULL, 10);
  const size_t block_size = strtoull(argv[3], NULL, 10);
  const int fd = open(argv[1], O_RDWR);
  if (fd < 0) return perror("open"), 1;
  char* base = mmap(NULL, blocks * block_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return perror("mmap"), 1;
  puts("mapped");
  fflush(stdout);
  char line[64];
  const unsigned step = 7919; /* a prime number, so that each block comes once */
  unsigned byte;
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "fill %u", &byte) == 1) {
      size_t most = 0;
      for (size_t i = 0; i < blocks; i++) {
        base[i * step % blocks * block_size + kPage + 5] = (char)byte;
        if (i % (blocks / 40 < kLook ? kLook : blocks / 40) == 0 || i == blocks - 1) {
          const size_t now = mappings();
          if (now > most) most = now;
        }
      }
      printf("%zu\n", most);
    } else if (sscanf(line, "check %u", &byte) == 1) {
      size_t wrong = 0;
      for (size_t i = 0; i < blocks; i++)
        wrong +=
            base[i * block_size + kPage + 5] != (char)byte || base[i * block_size + kPage + 4] != 7;
      printf("%zu\n", wrong);
    } else {
      return 2;
    }
    fflush(stdout);
  }
  return 0;
}
