/*
 * What mmap(2) and its relatives do with a mapped file, one case a run: says "ok", or what is
 * wrong.
 *
 *   mapping-cases FILE CASE
 *
 * FILE has 4 MiB; each of its pages is filled with the byte 1 + (page % 251). The cases of
 * `everywhere` hold for any file on Linux; those of `monitored` for a flat file under the monitor.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 4 << 20, READ_WRITE = PROT_READ | PROT_WRITE };

static const char* file;

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      printf("line %d: not true: %s (errno: %s)\n", __LINE__, #condition, strerrorname_np(errno)); \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)
#define MUST_FAIL(call, number)        \
  do {                                 \
    errno = 0;                         \
    MUST((call) && errno == (number)); \
  } while (0)

static unsigned char byte_of(size_t offset) { return (unsigned char)(1 + offset / PAGE % 251); }

static char* map(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  char* mapped = mmap(address, length, protection, flags, fd, offset);
  MUST(mapped != MAP_FAILED);
  return mapped;
}

/* Checks that bytes [offset, offset + length) of the file have their original values. */
static void must_hold(const char* at, size_t offset, size_t length) {
  for (size_t i = 0; i < length; i++)
    if ((unsigned char)at[i] != byte_of(offset + i)) {
      printf("byte %zu is %u in place of %u\n", offset + i, (unsigned char)at[i],
             byte_of(offset + i));
      exit(1);
    }
}

static int open_file(int flags) {
  const int fd = open(file, flags | O_CLOEXEC);
  MUST(fd >= 0);
  return fd;
}

static sigjmp_buf back;
static volatile sig_atomic_t caught;
static void catch (int number) {
  caught = number;
  siglongjmp(back, 1);
}

/* The signal that an access raises; 0: none. */
static int signal_of(volatile char* at, int write) {
  signal(SIGBUS, catch);
  signal(SIGSEGV, catch);
  caught = 0;
  if (!sigsetjmp(back, 1)) {
    if (write)
      *at = 1;
    else
      (void)*at;
  }
  return caught;
}

/* ---- everywhere ---- */

static void offset(void) {
  const int fd = open_file(O_RDWR);
  char* part = map(NULL, 5 * PAGE + 100, READ_WRITE, MAP_SHARED, fd, 33 * PAGE);
  must_hold(part, 33 * PAGE, 6 * PAGE); /* whole pages are mapped */
  part[PAGE] = 0;
  char* other = map(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 34 * PAGE);
  MUST(other[0] == 0);
  part[PAGE] = (char)byte_of(34 * PAGE);
  MUST(other[0] == (char)byte_of(34 * PAGE));
  MUST_FAIL(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 100) == MAP_FAILED, EINVAL);
  MUST_FAIL(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED, EINVAL);
}

static void two_mappings(void) {
  const int fd = open_file(O_RDWR);
  char* one = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  char* two = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  for (size_t at = 0; at < SIZE; at += 17 * PAGE) {
    MUST(two[at + 5] == (char)byte_of(at));
    one[at + 5] = 7;
    MUST(two[at + 5] == 7);
    two[at + 5] = (char)byte_of(at);
    MUST(one[at + 5] == (char)byte_of(at));
  }
  MUST(munmap(one, SIZE) == 0);
  must_hold(two, 0, SIZE);
}

static void fixed(void) {
  const int fd = open_file(O_RDWR);
  char* reserved =
      map(NULL, 3 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  MUST(map(reserved + SIZE, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == reserved + SIZE);
  close(fd);
  must_hold(reserved + SIZE, 0, SIZE);
  MUST(signal_of(reserved + SIZE - 1, 0) == SIGSEGV);
  MUST(signal_of(reserved + 2 * SIZE, 0) == SIGSEGV);
  /* Anonymous memory replaces a part of it. */
  map(reserved + SIZE + 4 * PAGE, 2 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
      0);
  MUST(reserved[SIZE + 4 * PAGE] == 0);
  reserved[SIZE + 4 * PAGE] = 9;
  must_hold(reserved + SIZE, 0, 4 * PAGE);
  must_hold(reserved + SIZE + 6 * PAGE, 6 * PAGE, SIZE - 6 * PAGE);
}

static void read_only(void) {
  const int fd = open_file(O_RDONLY);
  char* mapped = map(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
  must_hold(mapped, 0, SIZE);
  MUST(signal_of(mapped + 100, 1) == SIGSEGV);
  MUST_FAIL(mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, EACCES);
  must_hold(mapped, 0, PAGE);
}

static void write_only(void) {
  const int fd = open_file(O_WRONLY);
  MUST_FAIL(mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, EACCES);
}

static void protect(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[5 * PAGE] = 3;
  MUST(mprotect(mapped + 4 * PAGE, 4 * PAGE, PROT_READ) == 0);
  MUST(mapped[5 * PAGE] == 3);
  MUST(signal_of(mapped + 5 * PAGE, 1) == SIGSEGV);
  MUST(signal_of(mapped + 7 * PAGE, 1) == SIGSEGV);
  must_hold(mapped + 6 * PAGE, 6 * PAGE, 2 * PAGE);
  mapped[8 * PAGE] = 4; /* around it all is as before */
  MUST(mprotect(mapped, 6 * PAGE, PROT_NONE) == 0);
  MUST(signal_of(mapped + PAGE, 0) == SIGSEGV);
  MUST(mprotect(mapped, SIZE, READ_WRITE) == 0);
  MUST(mapped[5 * PAGE] == 3 && mapped[8 * PAGE] == 4);
  mapped[5 * PAGE] = (char)byte_of(5 * PAGE);
  mapped[8 * PAGE] = (char)byte_of(8 * PAGE);
  must_hold(mapped, 0, SIZE);
  MUST_FAIL(mprotect(mapped + 1, PAGE, PROT_READ) == -1, EINVAL);
  const int reading = open_file(O_RDONLY);
  MUST(munmap(mapped, SIZE) == 0);
  mapped = map(NULL, SIZE, PROT_READ, MAP_SHARED, reading, 0);
  MUST_FAIL(mprotect(mapped, SIZE, READ_WRITE) == -1, EACCES);
  must_hold(mapped, 0, PAGE);
  MUST(signal_of(mapped, 1) == SIGSEGV);
}

static void replace_itself(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[0] = 9;
  MUST(map(mapped, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == mapped);
  MUST(mapped[0] == 9);
  mapped[0] = (char)byte_of(0);
  must_hold(mapped, 0, SIZE);
}

static void unmap_part(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[10 * PAGE] = 77;
  MUST(munmap(mapped + 4 * PAGE, 3 * PAGE) == 0);
  MUST(signal_of(mapped + 4 * PAGE, 1) == SIGSEGV);
  MUST(signal_of(mapped + 7 * PAGE - 1, 0) == SIGSEGV);
  must_hold(mapped, 0, 4 * PAGE);
  must_hold(mapped + 7 * PAGE, 7 * PAGE, 3 * PAGE);
  MUST(mapped[10 * PAGE] == 77);
  mapped[10 * PAGE] = (char)byte_of(10 * PAGE);
  must_hold(mapped + 7 * PAGE, 7 * PAGE, SIZE - 7 * PAGE);
  MUST_FAIL(munmap(mapped + 1, PAGE) == -1, EINVAL);
  MUST_FAIL(munmap(mapped, 0) == -1, EINVAL);
  MUST(munmap(mapped, SIZE) == 0); /* also over the gap */
  MUST(signal_of(mapped, 0) == SIGSEGV);
  MUST(signal_of(mapped + SIZE - 1, 0) == SIGSEGV);
}

static void shrink(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  MUST(mremap(mapped, SIZE, SIZE / 2, 0) == mapped);
  must_hold(mapped, 0, SIZE / 2);
  MUST(signal_of(mapped + SIZE / 2, 0) == SIGSEGV);
  MUST_FAIL(mremap(mapped, SIZE / 2, 0, 0) == MAP_FAILED, EINVAL);
}

static void advise(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[PAGE] = 5; /* the page is in memory as the file's, and stays so */
  MUST(madvise(mapped, SIZE, MADV_DONTNEED) == 0);
  MUST(mapped[PAGE] == 5);
  mapped[PAGE] = (char)byte_of(PAGE);
  must_hold(mapped, 0, SIZE);
  MUST(madvise(mapped, SIZE, MADV_WILLNEED) == 0);
  MUST(madvise(mapped, SIZE, MADV_DONTDUMP) == 0);
  MUST_FAIL(madvise(mapped, SIZE, MADV_FREE) == -1, EINVAL);
  must_hold(mapped, 0, SIZE);
}

static void synchronise(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[3 * PAGE] = 5;
  MUST(msync(mapped, SIZE, MS_SYNC) == 0);
  MUST(msync(mapped + PAGE, PAGE, MS_ASYNC) == 0);
  MUST_FAIL(msync(mapped + 1, PAGE, MS_SYNC) == -1, EINVAL);
  MUST(fsync(fd) == 0);
  mapped[3 * PAGE] = (char)byte_of(3 * PAGE);
  MUST(fdatasync(fd) == 0);
}

static void remove_range(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  must_hold(mapped, 0, 40 * PAGE);
  MUST(madvise(mapped + 3 * PAGE, 20 * PAGE, MADV_REMOVE) == 0);
  for (size_t at = 3 * PAGE; at < 23 * PAGE; at++) MUST(mapped[at] == 0);
  must_hold(mapped, 0, 3 * PAGE);
  must_hold(mapped + 23 * PAGE, 23 * PAGE, 17 * PAGE);
  MUST(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 30 * PAGE, 2 * PAGE) == 0);
  for (size_t at = 30 * PAGE; at < 32 * PAGE; at++) MUST(mapped[at] == 0);
  for (size_t at = 0; at < SIZE; at++) mapped[at] = (char)byte_of(at);
}

static void private(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_PRIVATE, fd, 0);
  must_hold(mapped, 0, SIZE);
  mapped[0] = 99;
  char byte;
  MUST(pread(fd, &byte, 1, 0) == 1 && byte == (char)byte_of(0));
}

static void beyond_the_end(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, 2 * SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  must_hold(mapped, 0, SIZE);
  MUST(signal_of(mapped + SIZE, 0) == SIGBUS);
  MUST(signal_of(mapped + 2 * SIZE - 1, 1) == SIGBUS);
  mapped[SIZE - 1] = 1;
  mapped[SIZE - 1] = (char)byte_of(SIZE - 1);
  char* outside = map(NULL, PAGE, READ_WRITE, MAP_SHARED, fd, 4 * SIZE);
  MUST(signal_of(outside, 0) == SIGBUS);
}

/* A child that exits, one that runs a program, and a parent that continues. */
static void fork_and_go_on(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  mapped[0] = (char)byte_of(0);
  for (int way = 0; way < 3; way++) {
    const pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      if (way == 0) _exit(0);
      if (way == 1) exit(0);
      execlp("true", "true", (char*)NULL);
      _exit(1);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    must_hold(mapped + way * 16 * PAGE, (size_t)way * 16 * PAGE, 16 * PAGE);
    mapped[way * 16 * PAGE] = 3;
    MUST(mapped[way * 16 * PAGE] == 3);
    mapped[way * 16 * PAGE] = (char)byte_of((size_t)way * 16 * PAGE);
  }
  MUST(system("true") == 0);
  must_hold(mapped, 0, SIZE);
  MUST(fsync(fd) == 0);
}

/* System calls read and write the mapped memory. */
static void system_calls(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  const int memory = memfd_create("copy", MFD_CLOEXEC);
  for (ssize_t done = 0; done < SIZE;) {
    const ssize_t count = write(memory, mapped + done, (size_t)(SIZE - done));
    MUST(count > 0);
    done += count;
  }
  for (ssize_t done = 0; done < SIZE;) {
    const ssize_t count = pread(memory, mapped + done, (size_t)(SIZE - done), done);
    MUST(count > 0);
    done += count;
  }
  must_hold(mapped, 0, SIZE);
}

/* ---- monitored ---- */

static void not_moved(void) {
  const int fd = open_file(O_RDWR);
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  char* target = map(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST_FAIL(mremap(mapped, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED,
            ENOMEM);
  MUST_FAIL(mremap(mapped, SIZE, 2 * SIZE, MREMAP_MAYMOVE) == MAP_FAILED, ENOMEM);
  must_hold(mapped, 0, SIZE);
}

static void not_locked(void) {
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, open_file(O_RDWR), 0);
  MUST_FAIL(mlock(mapped, SIZE) == -1, ENOMEM);
  MUST_FAIL(mlock(mapped + 5 * PAGE, PAGE) == -1, ENOMEM);
}

static void not_synchronous(void) {
  const int fd = open_file(O_RDWR);
  MUST_FAIL(mmap(NULL, SIZE, READ_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0) == MAP_FAILED,
            EOPNOTSUPP);
  must_hold(map(NULL, SIZE, READ_WRITE, MAP_SHARED_VALIDATE, fd, 0), 0, SIZE);
}

static size_t entries_of(const char* directory) {
  DIR* opened = opendir(directory);
  MUST(opened);
  size_t count = 0;
  while (readdir(opened)) count++;
  closedir(opened);
  return count;
}

/* Repeated mapping and unmapping leaves no thread and no descriptor. */
static void cycles(void) {
  size_t threads = 0, descriptors = 0;
  for (int round = 0; round < 10; round++) {
    const int fd = open_file(O_RDWR);
    char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
    must_hold(mapped, 0, 2 * PAGE);
    mapped[0] = (char)byte_of(0);
    MUST(munmap(mapped, SIZE) == 0);
    close(fd);
    if (round == 0)
      threads = entries_of("/proc/self/task"), descriptors = entries_of("/proc/self/fd");
  }
  MUST(entries_of("/proc/self/task") == threads);
  MUST(entries_of("/proc/self/fd") == descriptors);
}

/*
 * A surviving child has nothing of the mapping, and does not keep the image from others when the
 * parent ends.
 */
static void child_lives_on(void) {
  char* mapped = map(NULL, SIZE, READ_WRITE, MAP_SHARED, open_file(O_RDWR), 0);
  must_hold(mapped, 0, PAGE);
  const pid_t child = fork();
  MUST(child >= 0);
  if (child > 0) {
    printf("%d\n", child);
    return;
  }
  const int read_signal = signal_of(mapped, 0);
  if (read_signal != SIGSEGV && read_signal != SIGBUS) _exit(1);
  const int nowhere = open("/dev/null", O_RDWR);
  for (int stream = 0; stream < 3; stream++) dup2(nowhere, stream);
  for (;;) pause();
}

static const struct {
  const char* name;
  void (*run)(void);
} cases[] = {
    {"offset", offset},
    {"two-mappings", two_mappings},
    {"fixed", fixed},
    {"read-only", read_only},
    {"write-only", write_only},
    {"protect", protect},
    {"replace-itself", replace_itself},
    {"unmap-part", unmap_part},
    {"shrink", shrink},
    {"advise", advise},
    {"sync", synchronise},
    {"remove", remove_range},
    {"private", private},
    {"beyond-the-end", beyond_the_end},
    {"fork", fork_and_go_on},
    {"system-calls", system_calls},
    {"not-moved", not_moved},
    {"not-locked", not_locked},
    {"not-synchronous", not_synchronous},
    {"cycles", cycles},
    {"child-lives-on", child_lives_on},
};

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  file = argv[1];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (strcmp(cases[i].name, argv[2]) == 0) {
      cases[i].run();
      puts("ok");
      return 0;
    }
  return 2;
}
