/*
 * What a mapping costs: loads and stores once touched, and the first touch of a page, in a file
 * under the monitor, in a plain file, and by the bare round trip of userfaultfd, which is the floor
 * of any first touch that a monitor serves.
 *
 *   memory-speed MONITORED PLAIN MEGABYTES     prints JSON; the halves of both files are used, the second by single pages
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 9, TOUCHES = 256, PAGE = 4096 };
static uint64_t sink;

static void die(const char* what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int ascending(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static double median(double* values, int count) {
  qsort(values, (size_t)count, sizeof *values, ascending);
  return values[count / 2];
}

static char* map(const char* path, size_t length) {
  int file = open(path, O_RDWR);
  char* memory =
      file < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) die(path);
  return memory;
}

/* Microseconds for a store and a load of every word. */
static double pass(char* memory, size_t length, int round) {
  double before = now();
  memset(memory, round + 1, length);
  uint64_t sum = 0;
  for (size_t at = 0; at < length; at += 8) sum += *(volatile uint64_t*)(memory + at);
  sink += sum;
  return now() - before;
}

/* The median of first touches, `stride` apart. */
static double first_touch(char* memory, size_t stride) {
  static double taken[TOUCHES];
  for (int i = 0; i < TOUCHES; i++) {
    double before = now();
    *(volatile char*)(memory + (size_t)i * stride) = 1;
    taken[i] = now() - before;
  }
  return median(taken, TOUCHES);
}

static void* serve(void* descriptor) {
  static char page[PAGE];
  int uffd = *(int*)descriptor;
  for (;;) {
    struct pollfd ready = {uffd, POLLIN, 0};
    struct uffd_msg event;
    poll(&ready, 1, -1);
    if (read(uffd, &event, sizeof event) != sizeof event) continue;
    struct uffdio_copy copy = {.dst = event.arg.pagefault.address & ~(uint64_t)(PAGE - 1),
                               .src = (uintptr_t)page,
                               .len = PAGE};
    if (ioctl(uffd, UFFDIO_COPY, &copy) < 0) die("UFFDIO_COPY");
  }
  return NULL;
}

static double bare_round_trip(void) {
  static int uffd;
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  struct uffdio_api api = {.api = UFFD_API};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0) die("userfaultfd");
  size_t length = (size_t)TOUCHES * PAGE;
  char* memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct uffdio_register range = {.range = {(uintptr_t)memory, length},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (memory == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &range) < 0) die("UFFDIO_REGISTER");
  pthread_t thread;
  if (pthread_create(&thread, NULL, serve, &uffd)) die("pthread_create");
  return first_touch(memory, PAGE);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  size_t length = (size_t)atoi(argv[3]) << 20, half = length / 2;
  char *monitored = map(argv[1], length), *plain = map(argv[2], length);
  double ratios[ROUNDS];
  pass(monitored, half, 0);
  pass(plain, half, 0);
  for (int round = 0; round < ROUNDS; round++) {
    double ours = pass(monitored, half, round), theirs = pass(plain, half, round);
    ratios[round] = theirs / ours;
  }
  size_t stride = half / TOUCHES;
  printf("{\"speed\":%.3f,\"expansionUs\":%.1f,\"plainTouchUs\":%.1f,\"roundTripUs\":%.1f}\n",
         median(ratios, ROUNDS), first_touch(monitored + half, stride),
         first_touch(plain + half, stride), bare_round_trip());
  return sink == 1;
}
