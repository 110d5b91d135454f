/* Shared by the benchmark programs: time, pinning to processors, latencies, JSON. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char* what) {
  perror(what);
  exit(1);
}

static inline uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void pin(pid_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((unsigned)cpu, &set);
  if (sched_setaffinity(thread, sizeof set, &set) < 0 && errno != ESRCH) die("sched_setaffinity");
}

/*
 * This thread on the first processor, every other thread of the process (the monitor's) on the last
 * one; or all on the first.
 */
static inline void place_threads(int together) {
  int last = together ? 0 : (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
  DIR* tasks = opendir("/proc/self/task");
  if (!tasks) die("/proc/self/task");
  for (struct dirent* task; (task = readdir(tasks));) {
    int thread = atoi(task->d_name);
    if (thread > 0) pin(thread, thread == (int)syscall(SYS_gettid) ? 0 : last);
  }
  closedir(tasks);
}

/*
 * Touches as much memory as the measurement will need, and frees it again. A hypervisor may back
 * the memory of a virtual machine only when it is touched, and take it back (free page reporting)
 * seconds after it was freed: a first touch then costs the same milliseconds for each MiB in any
 * system, which would hide everything else.
 */
static inline void warm_memory(size_t length) {
  char* memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  (void)madvise(memory, length, MADV_HUGEPAGE);
  for (size_t at = 0; at < length; at += 4096) *(volatile char*)(memory + at) = 1;
  munmap(memory, length);
}

static inline uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/* Latencies in steps of an eighth of a power of two of nanoseconds. */
enum { STEPS = 8, BUCKETS = 40 * STEPS };
struct latencies {
  uint64_t count[BUCKETS];
  uint64_t total;
  uint64_t longest;
};

static inline void add_latency(struct latencies* all, uint64_t ns) {
  unsigned bucket = 0;
  if (ns >= STEPS) {
    unsigned power = 63u - (unsigned)__builtin_clzll(ns);
    bucket = power * STEPS + (unsigned)((ns >> (power - 3)) & (STEPS - 1));
  }
  all->count[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
  all->total++;
  if (ns > all->longest) all->longest = ns;
}

static inline void merge_latencies(struct latencies* into, const struct latencies* from) {
  for (int i = 0; i < BUCKETS; i++) into->count[i] += from->count[i];
  into->total += from->total;
  if (from->longest > into->longest) into->longest = from->longest;
}

static inline double bucket_us(unsigned bucket) {
  return (double)(1ull << (bucket / STEPS)) * (1 + (bucket % STEPS + 0.5) / STEPS) / 1e3;
}

static inline double quantile_us(const struct latencies* all, double fraction) {
  uint64_t left = (uint64_t)(fraction * (double)all->total);
  for (unsigned i = 0; i < BUCKETS; i++) {
    if (all->count[i] > left) return bucket_us(i);
    left -= all->count[i];
  }
  return (double)all->longest / 1e3;
}

/* "p50":…,"p99":…,"longest":…,"histogram":[[µs,count],…] */
static inline void print_latencies(const struct latencies* all) {
  printf("\"p50\":%.3f,\"p99\":%.3f,\"longest\":%.3f,\"histogram\":[", quantile_us(all, 0.5),
         quantile_us(all, 0.99), (double)all->longest / 1e3);
  const char* comma = "";
  for (unsigned i = 0; i < BUCKETS; i++) {
    if (!all->count[i]) continue;
    printf("%s[%.3f,%llu]", comma, bucket_us(i), (unsigned long long)all->count[i]);
    comma = ",";
  }
  printf("]");
}
