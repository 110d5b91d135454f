/* Durable stores at random places of a mapped file, 64 bytes each. Commands, a line each on stdin:
 *
 *   scattered-stores FILE
 *     fill          stores into every byte, and syncs
 *     store COUNT   stores that many times, with a sync after each
 *     check         says how many pieces of 64 bytes do not hold what was stored last
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kPiece = 64 };

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) < 0) return perror("open"), 1;
  const size_t size = (size_t)status.st_size, pieces = size / kPiece;
  char* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  char* stored = calloc(pieces, 1);
  if (memory == MAP_FAILED || !stored) return perror("mmap"), 1;
  puts("mapped");
  fflush(stdout);
  uint64_t random = 88172645463325252ull;
  size_t count;
  for (char line[64]; fgets(line, sizeof line, stdin);) {
    if (strcmp(line, "fill\n") == 0) {
      memset(memory, 1, size);
      memset(stored, 1, pieces);
      if (msync(memory, size, MS_SYNC) < 0) return perror("msync"), 1;
      puts("filled");
    } else if (sscanf(line, "store %zu", &count) == 1) {
      for (size_t i = 0; i < count; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        const size_t piece = random % pieces;
        memset(memory + piece * kPiece, ++stored[piece], kPiece);
        if (msync(memory, size, MS_SYNC) < 0) return perror("msync"), 1;
      }
      puts("stored");
    } else if (strcmp(line, "check\n") == 0) {
      size_t wrong = 0;
      for (size_t i = 0; i < pieces; i++)
        wrong += memory[i * kPiece] != stored[i] || memory[i * kPiece + kPiece - 1] != stored[i];
      printf("%zu\n", wrong);
    } else {
      return 2;
    }
    fflush(stdout);
  }
  return 0;
}
