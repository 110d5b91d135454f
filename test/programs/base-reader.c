// base-reader FILE [read]: maps an image, or only for reading, and does what it is told, one line each:
//   sum FROM LENGTH        prints the sum of the bytes, and how many microseconds it took
//   put OFFSET BYTE        stores a byte
//   get OFFSET             prints a byte
//   drop FROM LENGTH       MADV_DONTNEED
//   mappings               prints how many mappings of the clean store it has
//   memory                 prints KiB that count as this process's own: Pss of all mappings, Private of the store's
//   attack                 tries to change the memory of the clean store through each of its descriptors and
//                          mappings, by any system call; prints what succeeded, or "nothing"
//   keep                   opens the store's memory again, and keeps it
//   inflate                reads the store's segments whole; prints how many MiB
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STORE "/memfd:pcow-clean-store"

static char* memory;
static size_t size;

static double microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

struct mapping {
  char *start, *end;
  unsigned long offset;
};

// The mappings of the store in this process, in the image's range only.
static int store_mappings(struct mapping* found, int most) {
  FILE* maps = fopen("/proc/self/maps", "r");
  char line[512];
  int count = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long start, end, offset;
    if (!strstr(line, STORE) || sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) != 3)
      continue;
    if ((char*)start < memory || (char*)start >= memory + size) continue;
    if (count < most) found[count] = (struct mapping){(char*)start, (char*)end, offset};
    count++;
  }
  fclose(maps);
  return count;
}

static long own_memory(void) {
  FILE* rollup = fopen("/proc/self/smaps_rollup", "r");
  char line[512];
  long pss = -1;
  while (fgets(line, sizeof line, rollup)) sscanf(line, "Pss: %ld", &pss);
  fclose(rollup);
  return pss;
}

// A descriptor of the store's memory: of the segment with this number. The monitor's threads have a
// table of their own, which a hostile process can reach: they are its own threads.
static int stolen(int access, int which) {
  ino_t seen[256];
  int found = 0;
  int tasks[64], count = 0;
  FILE* list = popen("ls /proc/$PPID/task", "r");
  while (count < 64 && fscanf(list, "%d", &tasks[count]) == 1) count++;
  pclose(list);
  for (int at = 0; at < count * 256; at++) {
    char path[64], target[256];
    struct stat status;
    snprintf(path, sizeof path, "/proc/self/task/%d/fd/%d", tasks[at / 256], at % 256);
    const ssize_t length = readlink(path, target, sizeof target - 1);
    if (length <= 0 || strncmp(target, STORE, strlen(STORE)) != 0 || stat(path, &status) < 0)
      continue;
    int old = 0;
    for (int i = 0; i < found; i++) old |= seen[i] == status.st_ino;
    if (old) continue;
    if (found == which) return open(path, access | O_CLOEXEC);
    seen[found++] = status.st_ino;
  }
  return -1;
}

// Reads all of them. Their mappings stay. Returns the number of bytes.
static size_t inflated(void) {
  size_t all = 0;
  for (int which = 0, memfd; (memfd = stolen(O_RDONLY, which)) >= 0; which++) {
    struct stat status;
    if (fstat(memfd, &status) < 0) exit(1);
    const size_t length = (size_t)status.st_size;
    volatile char* content = mmap(NULL, length, PROT_READ, MAP_PRIVATE, memfd, 0);
    if (content == MAP_FAILED) exit(1);
    for (size_t at = 0; at < length; at += 4096) (void)content[at];
    all += length;
  }
  return all;
}

static void succeeded(const char* what) { printf("%s ", what); }

static void attack(void) {
  struct mapping found[64];
  int count = store_mappings(found, 64);
  if (count == 0) {
    puts("no store");
    return;
  }
  int hits = 0;
#define TRY(what, condition) \
  do {                       \
    if (condition) {         \
      succeeded(what);       \
      hits++;                \
    }                        \
  } while (0)
  char bad[4096];
  memset(bad, 0x66, sizeof bad);
  const int reading = stolen(O_RDONLY, 0);
  const int writing = stolen(O_RDWR, 0);
  if (reading < 0) {
    puts("no descriptor");
    return;
  }
  for (int i = 0; i < 2; i++) {
    const int memfd = i ? writing : reading;
    if (memfd < 0) continue;
    TRY("write", write(memfd, bad, sizeof bad) > 0);
    TRY("pwrite", pwrite(memfd, bad, sizeof bad, 0) > 0);
    TRY("ftruncate", ftruncate(memfd, 0) == 0);
    TRY("ftruncate-grow", ftruncate(memfd, 1 << 30) == 0);
    TRY("fallocate-punch",
        fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
    TRY("fallocate-zero", fallocate(memfd, FALLOC_FL_ZERO_RANGE, 0, 4096) == 0);
    TRY("seals", fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    TRY("mmap-shared",
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0) != MAP_FAILED);
    char* read_only = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memfd, 0);
    if (read_only != MAP_FAILED) {
      TRY("mprotect", mprotect(read_only, 4096, PROT_READ | PROT_WRITE) == 0);
      TRY("madvise-remove", syscall(SYS_madvise, read_only, 4096, MADV_REMOVE) == 0);
      struct iovec from = {bad, 4096}, to = {read_only, 4096};
      TRY("process_vm_writev", process_vm_writev(getpid(), &from, 1, &to, 1, 0) > 0);
      munmap(read_only, 4096);
    }
    int pipes[2];
    if (pipe(pipes) == 0) {
      struct iovec one = {bad, 4096};
      if (vmsplice(pipes[1], &one, 1, 0) == 4096) {
        loff_t at = 0;
        TRY("splice", splice(pipes[0], NULL, memfd, &at, 4096, 0) > 0);
      }
      close(pipes[0]);
      close(pipes[1]);
    }
    const int zero = open("/dev/zero", O_RDONLY);
    TRY("sendfile", sendfile(memfd, zero, NULL, 4096) > 0);
    TRY("copy_file_range", syscall(SYS_copy_file_range, zero, NULL, memfd, NULL, 4096, 0) > 0);
    close(zero);
  }
  // Into a page of the private mapping, past the page tables: allowed, and nobody else sees it.
  const int own = open("/proc/self/mem", O_RDWR);
  (void)!pwrite(own, bad, sizeof bad, (off_t)(uintptr_t)found[0].start);
  close(own);
  // What comes out of a pipe to which a shared page was given without a copy must not be written.
  int pipes[2];
  if (pipe(pipes) == 0) {
    struct iovec one = {found[count - 1].end - 4096, 4096};
    (void)!vmsplice(pipes[1], &one, 1, SPLICE_F_GIFT);
    (void)!write(pipes[1], bad, 100);
    close(pipes[0]);
    close(pipes[1]);
  }
  if (hits == 0) printf("nothing");
  puts("");
}

int main(int argc, char** argv) {
  const int reads = argc > 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  const int file = open(argv[1], reads ? O_RDONLY : O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status) < 0) return 1;
  size = (size_t)status.st_size;
  memory = mmap(NULL, size, reads ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    perror("mmap");
    return 1;
  }
  puts("mapped");
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    unsigned long a = 0, b = 0;
    char word[32] = "";
    sscanf(line, "%31s %lu %lu", word, &a, &b);
    if (!strcmp(word, "sum")) {
      const double from = microseconds();
      uint64_t sum = 0;
      for (unsigned long at = a; at < a + b; at += 64) sum += (unsigned char)memory[at];
      printf("%lu %.0f\n", sum, microseconds() - from);
    } else if (!strcmp(word, "put")) {
      ((volatile char*)memory)[a] = (char)b;
      puts("ok");
    } else if (!strcmp(word, "get")) {
      printf("%d\n", (unsigned char)((volatile char*)memory)[a]);
    } else if (!strcmp(word, "drop")) {
      puts(madvise(memory + a, b, MADV_DONTNEED) == 0 ? "ok" : strerror(errno));
    } else if (!strcmp(word, "mappings")) {
      printf("%d\n", store_mappings(NULL, 0));
    } else if (!strcmp(word, "memory")) {
      printf("%ld\n", own_memory());
    } else if (!strcmp(word, "attack")) {
      attack();
    } else if (!strcmp(word, "keep")) {
      puts(stolen(O_RDONLY, 0) >= 0 ? "ok" : "no descriptor");
    } else if (!strcmp(word, "inflate")) {
      printf("%zu\n", inflated() >> 20);
    } else {
      puts("?");
    }
  }
  return 0;
}
