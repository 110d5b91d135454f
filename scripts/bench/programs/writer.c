/*
 * A guest's stand-in: threads that load and store in a mapped file without pause, while the caller
 * takes snapshots.
 *
 *   writer FILE BYTES THREADS written-back|fresh
 *
 * All of the first BYTES are written first, and, unless they are to be fresh, written back; then it
 * says "ready". Each step takes a 4 KiB page, nine times of ten in the first tenth of the file, and
 * one time in three writes 64 bytes there, else adds up the page. A line on the standard input is
 * answered with JSON of what has happened since the line before: "longestUs", the longest that any
 * thread has waited for one step; "steps"; "seconds"; "timeline", the steps in each 100 ms.
 */
#include "bench.h"

enum { MOST_THREADS = 64, SLOTS = 1024, PAGE = 4096 };
static const uint64_t slot_ns = 100000000;
static char* memory;
static size_t pages;
static _Atomic int stop;

struct worker {
  pthread_t thread;
  int id;
  _Atomic uint64_t longest, steps;
  _Atomic uint64_t timeline[SLOTS];
  _Atomic uint64_t since;
} __attribute__((aligned(64)));
static struct worker workers[MOST_THREADS];
static uint64_t sink;

static void* run(void* argument) {
  struct worker* me = argument;
  uint64_t seed = 88172645463325252ull * (uint64_t)(me->id + 1), sum = 0;
  pin(0, me->id % (int)sysconf(_SC_NPROCESSORS_ONLN));
  for (uint64_t before = now_ns(); !stop;) {
    uint64_t dice = next_random(&seed);
    size_t page = (size_t)((dice >> 8) % (dice % 10 == 0 ? pages : pages / 10));
    char* at = memory + page * PAGE;
    if (dice / 10 % 3 == 0)
      memset(at + (dice >> 40) % 64 * 64, (int)(dice & 127), 64);
    else
      for (size_t word = 0; word < PAGE; word += 64) sum += *(volatile uint64_t*)(at + word);
    uint64_t after = now_ns();
    if (after - before > me->longest) me->longest = after - before;
    uint64_t slot = (after - me->since) / slot_ns;
    if (slot < SLOTS) me->timeline[slot]++;
    me->steps++;
    before = after;
  }
  __atomic_fetch_add(&sink, sum, __ATOMIC_RELAXED);
  return NULL;
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  size_t length = strtoull(argv[2], NULL, 10);
  int threads = atoi(argv[3]);
  int file = open(argv[1], O_RDWR);
  pages = length / PAGE;
  if (threads < 1 || threads > MOST_THREADS || pages < 10) return 2;
  memory = file < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) die(argv[1]);
  memset(memory, 1, length);
  if (strcmp(argv[4], "fresh") != 0 && fsync(file) < 0) die("fsync");
  place_threads(0);
  uint64_t since = now_ns();
  for (int id = 0; id < threads; id++) {
    workers[id].id = id;
    workers[id].since = since;
    if (pthread_create(&workers[id].thread, NULL, run, &workers[id])) die("pthread_create");
  }
  printf("ready\n");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    uint64_t now = now_ns(), longest = 0, steps = 0, timeline[SLOTS] = {0};
    size_t slots = (size_t)((now - since) / slot_ns);
    if (slots > SLOTS) slots = SLOTS;
    for (int id = 0; id < threads; id++) {
      struct worker* each = &workers[id];
      uint64_t mine = __atomic_exchange_n(&each->longest, 0, __ATOMIC_RELAXED);
      if (mine > longest) longest = mine;
      steps += __atomic_exchange_n(&each->steps, 0, __ATOMIC_RELAXED);
      for (size_t i = 0; i < SLOTS; i++)
        timeline[i] += __atomic_exchange_n(&each->timeline[i], 0, __ATOMIC_RELAXED);
      each->since = now;
    }
    printf("{\"longestUs\":%.1f,\"steps\":%llu,\"seconds\":%.6f,\"timeline\":[",
           (double)longest / 1e3, (unsigned long long)steps, (double)(now - since) / 1e9);
    for (size_t i = 0; i < slots; i++)
      printf("%s%llu", i ? "," : "", (unsigned long long)timeline[i]);
    printf("]}\n");
    fflush(stdout);
    since = now;
  }
  stop = 1;
  for (int id = 0; id < threads; id++) pthread_join(workers[id].thread, NULL);
  return 0;
}
