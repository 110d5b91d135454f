/*
 * What programs do that have nothing to do with a mapping of theirs, and must not harm it: one case
 * a run, which says "ok" or what is wrong.
 *
 *   process-cases FILE CASE [OTHERFILE]     FILE and OTHERFILE are flat files on a base full of 0x55, at least 4 MiB
 *
 * What a case would wait for in vain ends it by SIGALRM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 4 << 20, READ_WRITE = PROT_READ | PROT_WRITE, ROUNDS = 15 };

#define MUST(condition)                                                       \
  do {                                                                        \
    if (!(condition)) {                                                       \
      dprintf(1, "line %d: not true: %s (errno: %s)\n", __LINE__, #condition, \
              strerrorname_np(errno));                                        \
      _exit(1);                                                               \
    }                                                                         \
  } while (0)

static const char *file, *other_file;
static int fd;
static char* memory;

static char* map_file(const char* path, int* descriptor) {
  *descriptor = open(path, O_RDWR | O_CLOEXEC);
  MUST(*descriptor >= 0);
  char* mapped = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, *descriptor, 0);
  MUST(mapped != MAP_FAILED);
  return mapped;
}

/* Meanwhile another thread works with memory of its own. */
static atomic_bool over;
static void* own_memory(void* unused) {
  char* slots[32] = {0};
  size_t lengths[32];
  for (unsigned turn = 1; !over; turn++) {
    const unsigned slot = turn * 2654435761u >> 27;
    if (slots[slot]) {
      for (size_t at = 0; at < lengths[slot]; at += PAGE) MUST(slots[slot][at] == (char)(slot + 1));
      MUST(munmap(slots[slot], lengths[slot]) == 0);
    }
    lengths[slot] = (size_t)PAGE << turn % 11;
    slots[slot] = mmap(NULL, lengths[slot], READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(slots[slot] != MAP_FAILED);
    memset(slots[slot], (int)slot + 1, lengths[slot]);
  }
  return unused;
}

/* munmap(2) removes its own range, once, and no other. */
static void unmap_beside_others(void) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, own_memory, NULL) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    MUST(munmap(memory, SIZE) == 0);
    memory = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
    MUST(memory != MAP_FAILED);
    memory[i * PAGE] = 1;
  }
  over = true;
  MUST(pthread_join(thread, NULL) == 0);
}

/* MAP_FIXED replaces in one step: no other mapping gets a part of the range meanwhile. */
static void replace_beside_others(void) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, own_memory, NULL) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    memory[0] = 1;
    MUST(mmap(memory, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
              0) == memory);
    MUST(mmap(memory, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == memory);
  }
  over = true;
  MUST(pthread_join(thread, NULL) == 0);
}

/* A daemon closes descriptors that it does not know, and opens files of its own. */
static void close_everything(void) {
  MUST(memory[0] == 0x55);
  memory[PAGE] = 1;
  MUST(syscall(SYS_close_range, 3, ~0u, 0) == 0);
  int own[40];
  for (int i = 0; i < 40; i++) {
    own[i] = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    MUST(own[i] >= 0 && write(own[i], "mine\n", 5) == 5);
  }
  for (size_t at = 2 * PAGE; at < SIZE; at += 16 * PAGE) MUST(memory[at] == 0x55);
  for (size_t at = 3 * PAGE; at < SIZE; at += 16 * PAGE) memory[at] = 2;
  MUST(msync(memory, SIZE, MS_SYNC) == 0);
  for (int i = 0; i < 40; i++) MUST(lseek(own[i], 0, SEEK_END) == 5);
}

/*
 * A thread is cancelled in a call about the mapping; others continue. Each call is a cancellation
 * point of its own.
 */
static void* syncs(void* unused) {
  for (unsigned i = 0;; i++) {
    memory[i % 1000 * PAGE] = 1;
    fsync(fd);
  }
  return unused;
}
static void* syncs_memory(void* unused) {
  for (unsigned i = 0;; i++) {
    memory[i % 1000 * PAGE] = 1;
    msync(memory + i % 1000 * PAGE, PAGE, MS_SYNC);
  }
  return unused;
}
static void* punches(void* unused) {
  for (unsigned i = 0;; i++)
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, i % 1000 * PAGE + 100, 1000);
  return unused;
}
static void cancel(void) {
  void* (*const calls[])(void*) = {syncs, syncs_memory, punches};
  for (int i = 0; i < ROUNDS; i++) {
    pthread_t thread;
    void* outcome;
    MUST(pthread_create(&thread, NULL, calls[i % 3], NULL) == 0);
    usleep((unsigned)(i * 131 % 3000));
    MUST(pthread_cancel(thread) == 0 && pthread_join(thread, &outcome) == 0 &&
         outcome == PTHREAD_CANCELED);
    memory[i * PAGE] = 3;
    MUST(fsync(fd) == 0);
  }
}

/* Cancellation points for other files stay cancellation points. */
static void* syncs_another(void* own) {
  for (;;) fsync(*(int*)own);
  return NULL;
}
static void* allocates_another(void* own) {
  for (;;) fallocate(*(int*)own, 0, 0, PAGE);
  return NULL;
}
static void* reads_another(void* own) {
  char byte;
  for (;;) pread(*(int*)own, &byte, 1, 0);
  return NULL;
}
static void cancel_another(void) {
  void* (*const calls[])(void*) = {syncs_another, allocates_another, reads_another};
  int own = open("/tmp", O_TMPFILE | O_RDWR, 0600);
  MUST(own >= 0);
  for (int i = 0; i < 3; i++) {
    pthread_t thread;
    void* outcome;
    MUST(pthread_create(&thread, NULL, calls[i], &own) == 0);
    MUST(pthread_cancel(thread) == 0 && pthread_join(thread, &outcome) == 0 &&
         outcome == PTHREAD_CANCELED);
  }
}

/* A signal handler stores into the mapping, whatever call about it its thread is in. */
static volatile unsigned long hits;
static void touch(int number) {
  (void)number;
  hits++;
  memory[hits * 16 * PAGE % (SIZE / 2)] = 1;
}
static void touch_in_handlers(void) {
  signal(SIGALRM, touch);
  for (unsigned call = 0; call < 6; call++) {
    const struct itimerval every = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    const unsigned long enough = hits + 50;
    MUST(setitimer(ITIMER_REAL, &every, NULL) == 0);
    for (int turn = 0; hits < enough; turn++) {
      if (call == 0)
        MUST(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE / 2) == 0);
      if (call == 1)
        MUST(mprotect(memory + SIZE / 2, SIZE / 2, turn % 2 ? READ_WRITE : PROT_READ) == 0);
      if (call == 2) MUST(fsync(fd) == 0);
      if (call == 3) {
        const pid_t child = fork();
        MUST(child >= 0);
        if (child == 0) _exit(0);
        while (waitpid(child, NULL, 0) < 0) MUST(errno == EINTR);
      }
      if (call == 4) {
        char* again = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
        MUST(again != MAP_FAILED && munmap(again, SIZE) == 0);
      }
      if (call == 5) MUST(madvise(memory, SIZE / 2, MADV_DONTNEED) == 0);
    }
    MUST(setitimer(ITIMER_REAL, &never, NULL) == 0);
  }
}

/* Fork handlers that access the mapping, registered before and after the monitor's. */
static void touch_some(void) { memory[++hits * PAGE] = 4; }

/* A child of a child, and one that maps images itself. */
static void children(void) {
  MUST(pthread_atfork(touch_some, touch_some, NULL) == 0);
  const pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    const pid_t grandchild = _Fork();
    MUST(grandchild >= 0);
    if (grandchild == 0) _exit(0);
    MUST(waitpid(grandchild, NULL, 0) == grandchild);
    int descriptor;
    char* own = map_file(other_file, &descriptor);
    own[0] = 7;
    MUST(own[0] == 7 && own[PAGE] == 0x55 && fsync(descriptor) == 0 && munmap(own, SIZE) == 0);
    _exit(0);
  }
  int status;
  MUST(waitpid(child, &status, 0) == child && status == 0);
}

/*
 * A child has nothing of the mapping, even if no fork handler runs: it cannot change what it does
 * not have.
 */
static void child_without_handlers(void) {
  memory[0] = 1;
  for (int way = 0; way < 2; way++)
    for (size_t at = 0; at <= 8 * PAGE; at += 8 * PAGE) {
      const pid_t child = way ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : _Fork();
      MUST(child >= 0);
      if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        memory[at] = 2;
        _exit(0);
      }
      int status;
      MUST(waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
           WTERMSIG(status) == SIGSEGV);
    }
  MUST(memory[0] == 1 && memory[8 * PAGE] == 0x55);
}

/* Calls that split the kernel's mappings leave them served. */
static void split(void) {
  MUST(madvise(memory + PAGE, 2 * PAGE, MADV_RANDOM) == 0);
  MUST(madvise(memory + 40 * PAGE, PAGE, MADV_SEQUENTIAL) == 0);
  for (size_t at = 0; at < 100 * PAGE; at += PAGE) MUST(memory[at] == 0x55);
  for (size_t at = 0; at < 100 * PAGE; at += PAGE) memory[at] = 5;
  for (size_t at = 0; at < 100 * PAGE; at += PAGE) MUST(memory[at] == 5);
}

/* Two mappings of one image show the same, whatever made a block the image's own. */
static void two_mappings(void) {
  char* second = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  MUST(second != MAP_FAILED);
  MUST(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE) == 0);
  for (size_t at = 0; at < SIZE; at += PAGE) MUST(second[at] == 0);
  for (size_t at = 0; at < SIZE; at += PAGE) {
    MUST(memory[at] == 0);
    memory[at] = 7;
    MUST(second[at] == 7);
  }
}

/*
 * A part of the mapping had another protection for a while: a call for the whole mapping is done in
 * every part.
 */
static void every_part(void) {
  memset(memory, 7, SIZE);
  MUST(mprotect(memory + SIZE / 4, SIZE / 4, PROT_READ) == 0);
  MUST(mprotect(memory + SIZE / 4, SIZE / 4, READ_WRITE) == 0);
  MUST(madvise(memory, SIZE, MADV_REMOVE) == 0);
  for (size_t at = 0; at < SIZE; at += PAGE) MUST(memory[at] == 0);
}

/* Without the right to write there is no right to discard. */
static void read_only(void) {
  const int reading = open(file, O_RDONLY);
  memory[0] = 8;
  errno = 0;
  MUST(fallocate(reading, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == -1 &&
       errno == EBADF);
  char* seen = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, reading, 0);
  errno = 0;
  MUST(seen != MAP_FAILED && madvise(seen, PAGE, MADV_REMOVE) == -1 && errno == EACCES);
  MUST(memory[0] == 8 && seen[0] == 8);
}

/* Under limits: an error, or it works. */
static void limits(void) {
  const int kinds[] = {RLIMIT_NOFILE, RLIMIT_NPROC};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    struct rlimit before;
    MUST(getrlimit(kinds[i], &before) == 0);
    const struct rlimit low = {4, before.rlim_max};
    MUST(setrlimit(kinds[i], &low) == 0);
    char* again = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
    if (again != MAP_FAILED) {
      again[i * PAGE] = 9;
      MUST(munmap(again, SIZE) == 0);
    }
    MUST(fsync(fd) == 0 && setrlimit(kinds[i], &before) == 0);
  }
}

/*
 * exit(3) while another thread stores: the image is not given back while a thread can still store.
 */
static void* stores(void* unused) {
  for (unsigned turn = 0;; turn++) memory[turn * PAGE % SIZE] = (char)turn;
  return unused;
}
static void exit_beside_stores(void) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, stores, NULL) == 0);
}

/* A destructor that runs after the monitor's. */
static void store_last(void) { memory[SIZE - 1] = 1; }
static void store_at_exit(void) {
  MUST(on_exit((void (*)(int, void*))(void*)store_last, NULL) == 0);
}
static void* late;
__attribute__((destructor(101))) static void store_very_last(void) {
  if (late) *(volatile char*)late = 1;
}
static void store_in_destructor(void) {
  late = memory + SIZE / 2;
  store_at_exit();
}

/*
 * msync over two images that are mapped side by side makes both durable; the test asks the monitor.
 */
static void two_images(void) {
  int other;
  char* place = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUST(mmap(place, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == place);
  other = open(other_file, O_RDWR);
  MUST(mmap(place + SIZE, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, other, 0) == place + SIZE);
  place[0] = place[SIZE] = 1;
  MUST(msync(place, 2 * SIZE, MS_SYNC) == 0);
  puts("synced");
  fflush(stdout);
  (void)getchar();
}

int main(int argc, char** argv) {
  static const struct {
    const char* name;
    void (*run)(void);
  } cases[] = {
      {"unmap-beside-others", unmap_beside_others},
      {"replace-beside-others", replace_beside_others},
      {"close-everything", close_everything},
      {"cancel", cancel},
      {"cancel-another", cancel_another},
      {"touch-in-handlers", touch_in_handlers},
      {"children", children},
      {"child-without-handlers", child_without_handlers},
      {"split", split},
      {"two-mappings", two_mappings},
      {"every-part", every_part},
      {"read-only", read_only},
      {"limits", limits},
      {"exit-beside-stores", exit_beside_stores},
      {"store-in-destructor", store_in_destructor},
      {"two-images", two_images},
  };
  if (argc < 3) return 2;
  file = argv[1];
  other_file = argc > 3 ? argv[3] : NULL;
  signal(SIGALRM, SIG_DFL);
  alarm(200);
  memory = map_file(file, &fd);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (strcmp(cases[i].name, argv[2]) == 0) {
      cases[i].run();
      puts("ok");
      return 0;
    }
  return 2;
}
