/*
 * First touches of a mapped file, timed one by one.
 *
 *   touch FILE BYTES STRIDE SIZE seq|random write|read THREADS apart|together
 *
 * Every STRIDE bytes of the first BYTES, SIZE bytes are written (memset) or read (one load a page).
 * Prints JSON. The thread that touches and the one that serves it are on two processors ("apart")
 * or on one; several that touch are on all. FILE may be "floor:PATH": then every page is served by
 * a bare userfaultfd thread, which copies 4 KiB into its place in the file PATH (all of whose pages
 * are in the page cache) and maps that page: what no monitor can be faster than.
 */
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "bench.h"

enum { PAGE = 4096, MOST_THREADS = 64 };
static char* memory;
static size_t stride, size, places;
static int writes, threads, shuffled;
static uint64_t* order;
static pthread_barrier_t start;

struct bare {
  int uffd, file;
  char* cached;
  size_t length;
};

static void* serve_barely(void* argument) {
  struct bare* bare = argument;
  static char source[PAGE];
  memset(source, 'b', PAGE);
  for (;;) {
    struct pollfd ready = {bare->uffd, POLLIN, 0};
    struct uffd_msg event;
    poll(&ready, 1, -1);
    if (read(bare->uffd, &event, sizeof event) != sizeof event) continue;
    char* page = (char*)(event.arg.pagefault.address & ~(uint64_t)(PAGE - 1));
    size_t offset = (size_t)(page - memory);
    memcpy(bare->cached + offset, source, PAGE);
    if (mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, bare->file,
             (off_t)offset) == MAP_FAILED)
      die("mmap");
    struct uffdio_range woken = {(uintptr_t)page, PAGE};
    ioctl(bare->uffd, UFFDIO_WAKE, &woken);
  }
  return NULL;
}

static char* map_barely(const char* path, size_t length) {
  static struct bare bare;
  bare.file = open(path, O_RDWR | O_CREAT, 0600);
  if (bare.file < 0 || ftruncate(bare.file, (off_t)length) < 0) die(path);
  bare.length = length;
  bare.cached = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, bare.file, 0);
  if (bare.cached == MAP_FAILED) die("mmap");
  for (size_t at = 0; at < length; at += PAGE) bare.cached[at] = 1;
  bare.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  struct uffdio_api api = {.api = UFFD_API};
  if (bare.uffd < 0 || ioctl(bare.uffd, UFFDIO_API, &api) < 0) die("userfaultfd");
  char* made = mmap(NULL, length, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  struct uffdio_register range = {.range = {(uintptr_t)made, length},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (made == MAP_FAILED || ioctl(bare.uffd, UFFDIO_REGISTER, &range) < 0) die("UFFDIO_REGISTER");
  memory = made;
  pthread_t server;
  if (pthread_create(&server, NULL, serve_barely, &bare)) die("pthread_create");
  return made;
}

static char* map_file(const char* path, size_t length) {
  int file = open(path, O_RDWR);
  char* made =
      file < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (made == MAP_FAILED) die(path);
  return made;
}

static void touch(char* at) {
  if (writes && size == 1) {
    *(volatile char*)at = 1;
  } else if (writes) {
    memset(at, 'w', size);
  } else {
    for (size_t within = 0; within < size; within += PAGE) (void)*(volatile char*)(at + within);
  }
}

static void* run(void* argument) {
  size_t id = (size_t)(uintptr_t)argument;
  if (threads > 1) pin(0, (int)(id % (size_t)sysconf(_SC_NPROCESSORS_ONLN)));
  struct latencies* mine = calloc(1, sizeof *mine);
  if (!mine) die("calloc");
  pthread_barrier_wait(&start);
  size_t first = places * id / (size_t)threads, end = places * (id + 1) / (size_t)threads;
  for (size_t i = first; i < end; i++) {
    char* at = memory + (shuffled ? order[i] : i) * stride;
    uint64_t before = now_ns();
    touch(at);
    add_latency(mine, now_ns() - before);
  }
  return mine;
}

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  size_t length = strtoull(argv[2], NULL, 10);
  stride = strtoull(argv[3], NULL, 10);
  size = strtoull(argv[4], NULL, 10);
  shuffled = strcmp(argv[5], "random") == 0;
  writes = strcmp(argv[6], "write") == 0;
  threads = atoi(argv[7]);
  places = length / stride;
  if (threads < 1 || threads > MOST_THREADS) return 2;
  memory = strncmp(argv[1], "floor:", 6) == 0 ? map_barely(argv[1] + 6, length)
                                              : map_file(argv[1], length);

  order = malloc(places * sizeof *order);
  if (!order) die("malloc");
  uint64_t seed = 88172645463325252ull;
  for (size_t i = 0; i < places; i++) order[i] = i;
  for (size_t i = places - 1; shuffled && i > 0; i--) {
    size_t other = next_random(&seed) % (i + 1);
    uint64_t swapped = order[i];
    order[i] = order[other];
    order[other] = swapped;
  }
  for (int cpu = (int)sysconf(_SC_NPROCESSORS_ONLN); cpu-- > 0;) {
    pin(0, cpu);
    warm_memory(2 * length);
  }
  place_threads(strcmp(argv[8], "together") == 0);
  pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
  pthread_t started[MOST_THREADS];
  for (int id = 0; id < threads; id++)
    if (pthread_create(&started[id], NULL, run, (void*)(uintptr_t)id)) die("pthread_create");
  pthread_barrier_wait(&start);
  uint64_t before = now_ns();
  static struct latencies all;
  for (int id = 0; id < threads; id++) {
    void* mine;
    pthread_join(started[id], &mine);
    merge_latencies(&all, mine);
  }
  double seconds = (double)(now_ns() - before) / 1e9;
  printf("{\"seconds\":%.6f,\"touches\":%zu,\"perSecond\":%.1f,", seconds, places,
         (double)places / seconds);
  print_latencies(&all);
  printf("}\n");
  return 0;
}
