/*
 * The speed of mapped memory once touched: the same passes over two files, alternating in one
 * process.
 *
 *   memory FILE OTHER BYTES ROUNDS
 *
 * Prints JSON: for each pass the seconds of each round in FILE and in OTHER.
 */
#include "bench.h"

static uint64_t sink;

static char* map(const char* path, size_t length) {
  int file = open(path, O_RDWR);
  char* memory =
      file < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) die(path);
  return memory;
}

static void store(char* memory, size_t length) { memset(memory, (int)(sink & 127), length); }

static void load(char* memory, size_t length) {
  uint64_t sum = 0;
  for (size_t at = 0; at < length; at += 64) sum += *(volatile uint64_t*)(memory + at);
  sink += sum;
}

static void random_store(char* memory, size_t length) {
  uint64_t state = 88172645463325252ull;
  for (size_t i = 0; i < length / 256; i++)
    *(volatile uint64_t*)(memory + next_random(&state) % (length / 8) * 8) = i;
}

static void random_load(char* memory, size_t length) {
  uint64_t state = 88172645463325252ull, sum = 0;
  for (size_t i = 0; i < length / 256; i++)
    sum += *(volatile uint64_t*)(memory + next_random(&state) % (length / 8) * 8);
  sink += sum;
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  size_t length = strtoull(argv[3], NULL, 10);
  int rounds = atoi(argv[4]);
  char* memory[2] = {map(argv[1], length), map(argv[2], length)};
  for (int which = 0; which < 2; which++)
    for (int warm = 0; warm < 2; warm++) store(memory[which], length);
  place_threads(0);
  static const struct {
    const char* name;
    void (*run)(char*, size_t);
  } passes[] = {{"store", store},
                {"load", load},
                {"random store", random_store},
                {"random load", random_load}};
  printf("{");
  for (size_t pass = 0; pass < sizeof passes / sizeof *passes; pass++) {
    double* seconds[2] = {calloc((size_t)rounds, sizeof(double)),
                          calloc((size_t)rounds, sizeof(double))};
    for (int round = 0; round < rounds; round++) {
      for (int turn = 0; turn < 2; turn++) {
        int which = (turn + round) % 2;
        uint64_t before = now_ns();
        passes[pass].run(memory[which], length);
        seconds[which][round] = (double)(now_ns() - before) / 1e9;
      }
    }
    printf("%s\"%s\":[", pass ? "," : "", passes[pass].name);
    for (int which = 0; which < 2; which++) {
      printf("%s[", which ? "," : "");
      for (int round = 0; round < rounds; round++)
        printf("%s%.6f", round ? "," : "", seconds[which][round]);
      printf("]");
      free(seconds[which]);
    }
    printf("]");
  }
  printf("}\n");
  return sink == 1;
}
