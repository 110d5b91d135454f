/*
 * Requests on a file for a time.
 *
 *   file-io FILE read|write|getattr|open seq|random SIZE JOBS direct|cached SECONDS BYTES
 *
 * Prints JSON. "cached" goes through the kernel's page cache, which is emptied of the file before.
 * One job runs on the processor that the caller has pinned us to; more of them on all.
 */
#include "bench.h"

enum { MOST_JOBS = 64 };
static const char *path, *kind;
static size_t size, length;
static int jobs, direct, shuffled;
static double duration;
static pthread_barrier_t start;

struct outcome {
  uint64_t operations, bytes;
  double seconds;
  struct latencies latencies;
};

static int open_it(void) {
  int file = open(path, (strcmp(kind, "write") == 0 ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0));
  if (file < 0) die(path);
  return file;
}

static void* run(void* argument) {
  size_t id = (size_t)(uintptr_t)argument;
  struct outcome* mine = calloc(1, sizeof *mine);
  char* buffer = NULL;
  if (!mine || posix_memalign((void**)&buffer, 4096, size)) die("memory");
  memset(buffer, (int)id + 1, size);
  int file = open_it();
  size_t slots = length / size / (size_t)jobs, at = 0;
  uint64_t seed = 88172645463325252ull * (id + 1);
  pthread_barrier_wait(&start);
  uint64_t began = now_ns(), end = began + (uint64_t)(duration * 1e9), before = began;
  while (before < end) {
    size_t slot = shuffled ? next_random(&seed) % slots : at++ % slots;
    off_t offset = (off_t)((id * slots + slot) * size);
    ssize_t done = 0;
    if (*kind == 'r') {
      if (!direct && !shuffled && slot == 0 && at > 1)
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
      done = pread(file, buffer, size, offset);
    } else if (*kind == 'w') {
      done = pwrite(file, buffer, size, offset);
    } else if (*kind == 'g') {
      struct statx found;
      done = statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &found) == 0
                 ? (ssize_t)size
                 : -1;
    } else {
      int other = open(path, O_RDONLY);
      done = other >= 0 && close(other) == 0 ? (ssize_t)size : -1;
    }
    if (done != (ssize_t)size) die(kind);
    uint64_t after = now_ns();
    add_latency(&mine->latencies, after - before);
    before = after;
    mine->operations++;
  }
  mine->bytes = mine->operations * size;
  mine->seconds = (double)(before - began) / 1e9;
  close(file);
  free(buffer);
  return mine;
}

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  path = argv[1];
  kind = argv[2];
  shuffled = strcmp(argv[3], "random") == 0;
  size = strtoull(argv[4], NULL, 10);
  jobs = atoi(argv[5]);
  direct = strcmp(argv[6], "direct") == 0;
  duration = atof(argv[7]);
  length = strtoull(argv[8], NULL, 10);
  if (jobs < 1 || jobs > MOST_JOBS) return 2;
  int file = open_it();
  if (!direct && posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)) die("posix_fadvise");
  close(file);
  pthread_barrier_init(&start, NULL, (unsigned)jobs);
  pthread_t started[MOST_JOBS];
  for (int id = 0; id < jobs; id++)
    if (pthread_create(&started[id], NULL, run, (void*)(uintptr_t)id)) die("pthread_create");
  static struct outcome all;
  double rate = 0, throughput = 0;
  for (int id = 0; id < jobs; id++) {
    void* result;
    pthread_join(started[id], &result);
    struct outcome* mine = result;
    rate += (double)mine->operations / mine->seconds;
    throughput += (double)mine->bytes / mine->seconds;
    merge_latencies(&all.latencies, &mine->latencies);
    free(mine);
  }
  printf("{\"perSecond\":%.1f,\"megabytesPerSecond\":%.3f,", rate, throughput / 1e6);
  print_latencies(&all.latencies);
  printf("}\n");
  return 0;
}
