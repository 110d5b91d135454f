/*
 * Threads that do what programs do to a shared mapping of a flat file, at random, until the input
 * ends.
 *
 *   random-mapper MODEL FILE SCRATCH SEED      SCRATCH: a directory of a filesystem that has direct I/O
 *
 * The image stands on a base full of 0x55. First, what an earlier run has left unfinished is
 * repeated, and everything that it did must be there. Mounts may die meanwhile: mappings continue,
 * and other calls fail and are repeated with a file of the next mount. Ends with "ok", or with what
 * is wrong. If PCOW_RANDOM_MAP_SYNC is set, every mapping is made with MAP_SYNC. One file, because
 * all operations work on the same few shared mappings.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "random-model.h"
#include "random-mount.h"

enum { SLOTS = 3, READ_WRITE = PROT_READ | PROT_WRITE, STUCK_AFTER_S = 150, RECENT = 8 };

/* A mapping of pages from `first` on. The first slot has all pages. */
struct slot {
  pthread_rwlock_t
      lock; /* shared: who looks at the memory or changes it; exclusive: who changes the mapping */
  char* memory;
  uint32_t first, count;
};

struct worker {
  int thread;
  unsigned seed;
  uint64_t number; /* of the step that is being done, or was last */
  struct page pages[PAGES];
  int pipe[2];
  int direct;   /* a file of one page */
  char* buffer; /* a page */
};

static struct model* model;
static const char *file, *scratch;
static int fd; /* the number stays, and gets a file of the next mount */
static int kind = MAP_SHARED;
static atomic_uint mounts;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static struct slot slots[SLOTS];
static atomic_bool over;
static atomic_int ended; /* threads that have */
static atomic_ulong calls[THREADS];

/*
 * A call on `fd` has failed, perhaps only because its mount has died, or has not answered in time;
 * disturb() notices a call that never returns. `before`: `mounts` when the call began.
 */
static void open_anew(unsigned before) {
  const int err = errno;
  if (err == ETIMEDOUT) return;
  pthread_mutex_lock(&opening);
  if (mounts == before) {
    const bool dead = !lives(fd);
    errno = err;
    MUST(dead);
    const int next = open_in_mount(file, O_RDWR);
    MUST(next >= 0 && dup3(next, fd, O_CLOEXEC) == fd);
    close(next);
    mounts++;
  }
  pthread_mutex_unlock(&opening);
}

static unsigned below(struct worker* worker, unsigned limit) {
  worker->seed = worker->seed * 1664525u + 1013904223u;
  return (unsigned)((uint64_t)worker->seed * limit >> 32);
}

static uint32_t own_page(struct worker* worker) {
  if (below(worker, 2))
    return below(worker, PAGES / 2 / THREADS) * THREADS + (uint32_t)worker->thread;
  return PAGES / 2 + (uint32_t)worker->thread * (PAGES / 2 / THREADS) +
         below(worker, PAGES / 2 / THREADS);
}

/* A slot with these pages, held. */
static struct slot* slot_of(struct worker* worker, uint32_t page, uint32_t count) {
  struct slot* slot = &slots[below(worker, SLOTS)];
  pthread_rwlock_rdlock(&slot->lock);
  if (page >= slot->first && page + count <= slot->first + slot->count) return slot;
  pthread_rwlock_unlock(&slot->lock);
  pthread_rwlock_rdlock(&slots[0].lock);
  return &slots[0];
}

static char* address_in(const struct slot* slot, uint32_t page) {
  return slot->memory + (size_t)(page - slot->first) * PAGE;
}

/* Faults show where something was changed a moment ago. */
static uint32_t recent_page(struct worker* worker) {
  if (worker->number == 0) return own_page(worker);
  const uint64_t most = worker->number < RECENT ? worker->number : RECENT;
  const struct step step =
      model->logs[worker->thread].steps[worker->number - 1 - below(worker, (unsigned)most)];
  return step.page + (step.kind == ZERO ? below(worker, step.extra) : 0);
}

/* Checks that a page of this thread has what the model says. */
static void look(struct worker* worker, const struct slot* slot, uint32_t page) {
  const char* seen = address_in(slot, page);
  if (is_page(seen, &worker->pages[page])) return;
  uint64_t first;
  memcpy(&first, seen, 8);
  dprintf(1,
          "thread %d, step %lu: page %u begins with %016lx, not %016lx; byte 8 is %02x, not %02x "
          "(slot %ld)\n",
          worker->thread, (unsigned long)worker->number, page, (unsigned long)first,
          (unsigned long)worker->pages[page].cells[0], (unsigned char)seen[8],
          worker->pages[page].fill, (long)(slot - slots));
  _exit(1);
}

/* A page of another thread: one of its possible contents. The race is intended. */
__attribute__((no_sanitize("thread"))) static void glance(struct worker* worker,
                                                          const struct slot* slot, uint32_t page) {
  const uint64_t seen =
      *(volatile uint64_t*)(address_in(slot, page) + below(worker, CELLS) * CELL_STRIDE);
  const int owner = owner_of(page);
  if (seen == 0 || seen == 0x5555555555555555u) return;
  MUST(seen >> 56 == (uint64_t)owner + 1);
  MUST((seen & ~(0xffull << 56)) <= model->logs[owner].begun);
}

/* Eight bytes, by one of the ways in which they get into memory. */
static void put_cell(struct worker* worker, char* address, uint64_t value) {
  struct iovec from = {&value, 8}, to = {address, 8};
  switch (below(worker, 6)) {
    case 0:
      MUST(write(worker->pipe[1], &value, 8) == 8);
      MUST(read(worker->pipe[0], address, 8) == 8);
      return;
    case 1: MUST(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 8); return;
    default: __atomic_store_n((uint64_t*)address, value, __ATOMIC_RELEASE);
  }
}

static void put_page(struct worker* worker, char* address, const struct page* page) {
  bytes_of(page, (uint8_t*)worker->buffer);
  struct iovec from = {worker->buffer, PAGE}, to = {address, PAGE};
  switch (below(worker, 4)) {
    case 0:
      MUST(pwrite(worker->direct, worker->buffer, PAGE, 0) == PAGE);
      MUST(pread(worker->direct, address, PAGE, 0) == PAGE);
      return;
    case 1: MUST(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == PAGE); return;
    case 2:
      MUST(pwrite(worker->direct, worker->buffer, PAGE, 0) == PAGE);
      MUST(preadv(worker->direct, &to, 1, 0) == PAGE);
      return;
    default: memcpy(address, worker->buffer, PAGE);
  }
}

static void put_zeros(struct worker* worker, char* address, uint32_t page, uint32_t count) {
  const off_t at = (off_t)page * PAGE;
  const size_t length = (size_t)count * PAGE;
  const unsigned way = below(worker, 4);
  if (way == 0) MUST(madvise(address, length, MADV_REMOVE) == 0);
  if (way == 1) memset(address, 0, length);
  if (way < 2) return;
  const int mode = (way == 2 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
  for (unsigned before = mounts; fallocate(fd, mode, at, (off_t)length) != 0; before = mounts)
    open_anew(before);
}

static void do_step(struct worker* worker, const struct slot* slot, struct step step) {
  char* address = address_in(slot, step.page);
  apply(worker->pages, worker->thread, step, worker->number);
  switch ((enum kind)step.kind) {
    case STORE:
      put_cell(worker, address + step.extra * CELL_STRIDE,
               worker->pages[step.page].cells[step.extra]);
      return;
    case FILL: put_page(worker, address, &worker->pages[step.page]); return;
    case ZERO: put_zeros(worker, address, step.page, step.extra); return;
  }
}

static struct step random_step(struct worker* worker) {
  struct step step = {
      .kind = STORE, .page = own_page(worker) & 0x3fff, .extra = below(worker, CELLS) & 0xffff};
  const unsigned kind = below(worker, 20);
  if (kind < 4) step.kind = FILL;
  if (kind != 4) return step;
  step.kind = ZERO;
  step.extra = 1;
  if (step.page < PAGES / 2) return step;
  uint32_t end = step.page + 1;
  const uint32_t most =
      below(worker, 4) ? 1 + below(worker, 8) : 1 + below(worker, PAGES / 2 / THREADS);
  while (end < PAGES && end < step.page + most && owner_of(end) == worker->thread) end++;
  step.extra = (end - step.page) & 0xffff;
  return step;
}

static void change(struct worker* worker) {
  struct log* log = &model->logs[worker->thread];
  const struct step step = random_step(worker);
  const struct slot* slot = slot_of(worker, step.page, step.kind == ZERO ? step.extra : 1);
  log->steps[worker->number++] = step;
  log->begun = worker->number;
  do_step(worker, slot, step);
  log->done = worker->number;
  if (below(worker, 4) == 0) look(worker, slot, step.page);
  pthread_rwlock_unlock((pthread_rwlock_t*)&slot->lock);
}

static void sync_file(struct worker* worker) {
  for (unsigned before = mounts; (below(worker, 2) ? fsync(fd) : fdatasync(fd)) != 0;
       before = mounts)
    open_anew(before);
}

/* Calls that do not change the memory. Some are refused, which is not checked here. */
static void advise(struct worker* worker) {
  static const int advices[] = {MADV_NORMAL,   MADV_RANDOM,     MADV_SEQUENTIAL,    MADV_WILLNEED,
                                MADV_DONTNEED, MADV_HUGEPAGE,   MADV_COLD,          MADV_PAGEOUT,
                                MADV_DONTDUMP, MADV_NOHUGEPAGE, MADV_POPULATE_READ, MADV_DODUMP};
  const uint32_t page = own_page(worker), count = 1 + below(worker, PAGES - page);
  const struct slot* slot = slot_of(worker, page, count);
  char* address = address_in(slot, page);
  const size_t length = (size_t)count * PAGE;
  switch (below(worker, 8)) {
    case 0: MUST(msync(address, length, below(worker, 2) ? MS_SYNC : MS_ASYNC) == 0); break;
    case 1: sync_file(worker); break;
    case 2: mlock2(address, length, MLOCK_ONFAULT); break;
    case 3: MUST(mprotect(address, length, READ_WRITE) == 0); break;
    default: madvise(address, length, advices[below(worker, sizeof advices / sizeof *advices)]);
  }
  pthread_rwlock_unlock((pthread_rwlock_t*)&slot->lock);
}

/*
 * MAP_FAILED: something is there already, with MAP_FIXED_NOREPLACE; which the kernel never permits
 * together with MAP_SHARED_VALIDATE (EOPNOTSUPP: it is not in its LEGACY_MAP_MASK).
 */
static void* map(void* at, uint32_t first, uint32_t count, int flags) {
  for (;;) {
    const unsigned before = mounts;
    void* mapped =
        mmap(at, (size_t)count * PAGE, READ_WRITE, kind | flags, fd, (off_t)first * PAGE);
    if (mapped != MAP_FAILED) return mapped;
    const int occupied = kind == MAP_SHARED ? EEXIST : EOPNOTSUPP;
    if (errno == occupied && (flags & MAP_FIXED_NOREPLACE)) return mapped;
    open_anew(before);
  }
}

static void map_slot(struct worker* worker, struct slot* slot) {
  if (slot != &slots[0]) {
    slot->first = below(worker, PAGES);
    slot->count = 1 + below(worker, PAGES - slot->first);
  }
  slot->memory = map(NULL, slot->first, slot->count, 0);
}

static void unmap_slot(struct worker* worker, struct slot* slot) {
  const size_t length = (size_t)slot->count * PAGE, half = slot->count / 2 * (size_t)PAGE;
  if (below(worker, 2) || half == 0) {
    MUST(munmap(slot->memory, length) == 0);
  } else {
    MUST(munmap(slot->memory + half, length - half) == 0);
    MUST(munmap(slot->memory, half) == 0);
  }
}

/* Returns false if a mapping of another thread, or of the C library, is in the hole by now. */
static bool map_hole(const struct slot* slot, uint32_t part, uint32_t count) {
  char* address = slot->memory + (size_t)part * PAGE;
  void* mapped = map(address, slot->first + part, count, MAP_FIXED_NOREPLACE);
  MUST(mapped == address || mapped == MAP_FAILED);
  return mapped == address;
}

/* Replaces the mapping of a slot. */
static void remap(struct worker* worker) {
  struct slot* slot = &slots[below(worker, SLOTS)];
  pthread_rwlock_wrlock(&slot->lock);
  const uint32_t part = below(worker, slot->count), count = 1 + below(worker, slot->count - part);
  char* address = slot->memory + (size_t)part * PAGE;
  switch (below(worker, 5)) {
    case 0:
      unmap_slot(worker, slot);
      map_slot(worker, slot);
      break;
    case 1: MUST(map(address, slot->first + part, count, MAP_FIXED) == address); break;
    case 2:
      MUST(munmap(address, (size_t)count * PAGE) == 0);
      if (map_hole(slot, part, count)) break;
      if (part) MUST(munmap(slot->memory, (size_t)part * PAGE) == 0);
      if (part + count < slot->count)
        MUST(munmap(address + (size_t)count * PAGE, (size_t)(slot->count - part - count) * PAGE) ==
             0);
      map_slot(worker, slot);
      break;
    case 3:
      MUST(mprotect(address, (size_t)count * PAGE, PROT_READ) == 0);
      MUST(mprotect(address, (size_t)count * PAGE, READ_WRITE) == 0);
      break;
    default:
      if (slot == &slots[0] || slot->count < 2) break;
      MUST(mremap(slot->memory, (size_t)slot->count * PAGE, (size_t)(slot->count / 2) * PAGE, 0) ==
           slot->memory);
      slot->count /= 2;
  }
  pthread_rwlock_unlock(&slot->lock);
}

/*
 * Nothing is mapped for a moment: the mount has the image back, and its descriptor is an ordinary
 * file's.
 */
static void intermission(struct worker* worker) {
  for (int slot = 0; slot < SLOTS; slot++) pthread_rwlock_wrlock(&slots[slot].lock);
  for (int slot = 0; slot < SLOTS; slot++) unmap_slot(worker, &slots[slot]);
  struct log* log = &model->logs[worker->thread];
  const struct step step = {.kind = FILL, .page = own_page(worker) & 0x3fff};
  log->steps[worker->number++] = step;
  log->begun = worker->number;
  apply(worker->pages, worker->thread, step, worker->number);
  bytes_of(&worker->pages[step.page], (uint8_t*)worker->buffer);
  for (unsigned before = mounts; pwrite(fd, worker->buffer, PAGE, (off_t)step.page * PAGE) != PAGE;
       before = mounts)
    open_anew(before);
  log->done = worker->number;
  if (below(worker, 2)) sync_file(worker);
  const uint32_t other = own_page(worker);
  for (unsigned before = mounts; pread(fd, worker->buffer, PAGE, (off_t)other * PAGE) != PAGE;
       before = mounts)
    open_anew(before);
  MUST(is_page(worker->buffer, &worker->pages[other]));
  for (int slot = 0; slot < SLOTS; slot++) map_slot(worker, &slots[slot]);
  for (int slot = 0; slot < SLOTS; slot++) pthread_rwlock_unlock(&slots[slot].lock);
}

static void child(struct worker* worker) {
  const pid_t pid = below(worker, 2) ? fork() : _Fork();
  MUST(pid >= 0);
  /*
   * Not _exit(2): the thread sanitizer's version would wait for a lock that another thread held in
   * the parent.
   */
  if (pid == 0) syscall(SYS_exit_group, 7);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) MUST(errno == EINTR);
  MUST(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

/*
 * From the thread sanitizer, which does not see that the monitor's munmap(2) and mmap(2) pass an
 * address from one thread to another.
 */
void __tsan_acquire(void* address) __attribute__((weak));
void __tsan_release(void* address) __attribute__((weak));

/*
 * Another descriptor of the same file, and a private mapping of it, which the kernel serves: if its
 * mount has died, accessing it raises SIGBUS, and the kernel's own accesses fail with EFAULT.
 */
static void another_descriptor(struct worker* worker) {
  const int other = open(file, (below(worker, 2) ? O_RDWR : O_RDONLY) | O_CLOEXEC);
  MUST(other >= 0 || means_no_mount(errno));
  if (other < 0) return;
  const uint32_t page = own_page(worker);
  char* copy = mmap(NULL, PAGE, READ_WRITE, MAP_PRIVATE, other, (off_t)page * PAGE);
  MUST(copy != MAP_FAILED);
  if (__tsan_acquire) __tsan_acquire(copy);
  char byte = 0;
  if (write(worker->pipe[1], copy, 1) == 1) {
    MUST(read(worker->pipe[0], &byte, 1) == 1 && write(worker->pipe[1], &byte, 1) == 1);
    if (read(worker->pipe[0], copy + 1, 1) != 1) {
      MUST(errno == EFAULT && !lives(other));
      MUST(read(worker->pipe[0], &byte, 1) == 1);
    }
  } else {
    MUST(errno == EFAULT && !lives(other));
  }
  if (__tsan_release) __tsan_release(copy);
  MUST(munmap(copy, PAGE) == 0);
  close(other);
}

static void act(struct worker* worker) {
  const unsigned what = below(worker, 1000);
  if (what < 600) return change(worker);
  if (what < 950) {
    const unsigned which = below(worker, 4);
    const uint32_t page = which > 1 ? recent_page(worker)
                          : which   ? own_page(worker)
                                    : below(worker, PAGES);
    const struct slot* slot = slot_of(worker, page, 1);
    if (owner_of(page) == worker->thread)
      look(worker, slot, page);
    else
      glance(worker, slot, page);
    pthread_rwlock_unlock((pthread_rwlock_t*)&slot->lock);
    return;
  }
  if (what < 980) return advise(worker);
  if (what < 993) return remap(worker);
  if (what < 996) return child(worker);
  if (what < 998) return another_descriptor(worker);
  if (below(worker, 4) == 0) intermission(worker);
}

/* Does what the log says, then the step that was begun. */
static void catch_up(struct worker* worker) {
  struct log* log = &model->logs[worker->thread];
  begin_with(worker->pages);
  while (worker->number < log->done) {
    const struct step step = log->steps[worker->number++];
    apply(worker->pages, worker->thread, step, worker->number);
  }
  pthread_rwlock_rdlock(&slots[0].lock);
  while (worker->number < log->begun) {
    const struct step step = log->steps[worker->number++];
    do_step(worker, &slots[0], step);
    log->done = worker->number;
  }
  for (uint32_t page = 0; page < PAGES; page++)
    if (owner_of(page) == worker->thread) look(worker, &slots[0], page);
  pthread_rwlock_unlock(&slots[0].lock);
}

static void* work(void* argument) {
  struct worker* worker = argument;
  char path[4096];
  snprintf(path, sizeof path, "%s/direct-%d", scratch, worker->thread);
  worker->direct = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  MUST(worker->direct >= 0);
  MUST(pipe2(worker->pipe, O_CLOEXEC) == 0);
  worker->buffer = aligned_alloc(PAGE, PAGE);
  MUST(worker->buffer != NULL);
  catch_up(worker);
  while (!over && worker->number < STEPS) {
    act(worker);
    calls[worker->thread]++;
  }
  ended++;
  free(worker->buffer);
  return NULL;
}

static void nothing(int signal) { (void)signal; }

static bool input_ended(int wait_ms) {
  struct pollfd input = {.fd = 0, .events = POLLIN};
  return poll(&input, 1, wait_ms) > 0;
}

/*
 * Sends signals to the threads at random until they have ended, which they do when the input ends.
 * Notices a thread that makes no progress.
 */
static void disturb(pthread_t* threads, unsigned* seed) {
  unsigned long last[THREADS] = {0};
  int still_ms[THREADS] = {0};
  while (ended < THREADS) {
    if (input_ended(10)) {
      over = true;
      usleep(10000);
    }
    pthread_kill(threads[rand_r(seed) % THREADS], SIGUSR1);
    for (int thread = 0; thread < THREADS; thread++) {
      still_ms[thread] = calls[thread] == last[thread] && model->logs[thread].done < STEPS
                             ? still_ms[thread] + 10
                             : 0;
      last[thread] = calls[thread];
      if (still_ms[thread] < STUCK_AFTER_S * 1000) continue;
      dprintf(1, "thread %d stands still after step %lu\n", thread,
              (unsigned long)model->logs[thread].done);
      _exit(1);
    }
  }
}

int main(int argc, char** argv) {
  MUST(argc == 5);
  model = open_model(argv[1]);
  file = argv[2];
  scratch = argv[3];
  if (getenv("PCOW_RANDOM_MAP_SYNC")) kind = MAP_SHARED_VALIDATE | MAP_SYNC;
  unsigned seed = (unsigned)atoi(argv[4]);
  fd = open_in_mount(file, O_RDWR);
  MUST(fd >= 0);
  const struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
  MUST(sigaction(SIGUSR1, &action, NULL) == 0);
  for (int slot = 0; slot < SLOTS; slot++) {
    pthread_rwlock_init(&slots[slot].lock, NULL);
    slots[slot].count = PAGES;
    slots[slot].memory = map(NULL, 0, PAGES, 0);
  }
  static struct worker workers[THREADS];
  pthread_t threads[THREADS];
  for (int thread = 0; thread < THREADS; thread++) {
    workers[thread].thread = thread;
    workers[thread].seed = seed + 7919u * (unsigned)thread;
    MUST(pthread_create(&threads[thread], NULL, work, &workers[thread]) == 0);
  }
  disturb(threads, &seed);
  for (int thread = 0; thread < THREADS; thread++) pthread_join(threads[thread], NULL);
  dprintf(1, "ok\n");
}
