/*
 * Every system call that Linux has for memory, made on a shared mapping of a whole file: a line for
 * each with what it returned, and what the mapping holds afterwards. The lines for a flat file
 * under the monitor are compared with those for a file on tmpfs.
 *
 *   mapping-calls FILE OTHERFILE     both are filled with 0x55, at least 1 MiB; OTHERFILE is an ordinary file
 *
 * Each call has a mapping of its own, a process may not hang (it would be ended by SIGALRM), and
 * what it changed is mended afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
  PAGE = 4096,
  PAGES = 64,
  SIZE = PAGES * PAGE,
  READ_WRITE = PROT_READ | PROT_WRITE,
  FILL = 0x55
};

static int fd, other;
static char* memory;
static sigjmp_buf back;
static const char* volatile doing = "";

static void caught(int number) { siglongjmp(back, number); }

static void hung(int number) {
  (void)number;
  dprintf(1, "%s: HANGS\n", doing);
  _exit(1);
}

/* The result of a load or a store: a byte, or the name of a signal. */
static const char* outcome_of(volatile char* at, int store) {
  static char text[16];
  const int number = sigsetjmp(back, 1);
  if (number) return number == SIGBUS ? "BUS" : "SEGV";
  if (store) *at = 0x66;
  snprintf(text, sizeof text, "%02x", (unsigned char)*at);
  return text;
}

static void tell(const char* name, long result, int err) {
  printf("%s: %s", name, result == -1 ? strerrorname_np(err) : "ok");
  static const int pages[] = {0, 1, 7, 8, 9, 31, 63};
  printf(" | loads");
  for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
    printf(" %s", outcome_of(memory + pages[i] * PAGE, 0));
  printf(" | stores");
  for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
    printf(" %s", outcome_of(memory + pages[i] * PAGE + 100, 1));
  printf(" | file");
  for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
    /* The file as another mapping shows it. */
    char* seen = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    printf(" %s", seen == MAP_FAILED ? "none" : outcome_of(seen + pages[i] * PAGE + 100, 0));
    if (seen != MAP_FAILED) munmap(seen, SIZE);
  }
  printf("\n");
  fflush(stdout);
}

static void begin(const char* name) {
  doing = name;
  alarm(120);
  char* fresh = mmap(NULL, SIZE, READ_WRITE, MAP_SHARED, fd, 0);
  if (fresh == MAP_FAILED) {
    printf("%s: cannot begin: %s\n", name, strerrorname_np(errno));
    exit(1);
  }
  /* Only the differences from the expected content; the rest is as in the base. */
  for (int page = 0; page < PAGES; page++)
    for (int i = 0; i < PAGE; i++)
      if (fresh[page * PAGE + i] != FILL) {
        memset(fresh + page * PAGE, FILL, PAGE);
        break;
      }
  memory = fresh;
}

static void end(void) {
  munmap(memory, SIZE);
  alarm(0);
}

#define CALL(name, call)               \
  do {                                 \
    begin(name);                       \
    errno = 0;                         \
    const long result_ = (long)(call); \
    tell(name, result_, errno);        \
    end();                             \
  } while (0)

/*
 * The result of mmap is an address: only whether there is one matters, and the mapping is removed
 * again.
 */
static long mapped(void* address, size_t length) {
  if (address == MAP_FAILED) return -1;
  const int err = errno;
  munmap(address, length);
  errno = err;
  return 0;
}

static void maps(void) {
  static const struct {
    const char* name;
    int protection, flags;
    off_t offset;
    size_t length;
  } all[] = {
      {"mmap shared, read", PROT_READ, MAP_SHARED, 0, SIZE},
      {"mmap shared, nothing", PROT_NONE, MAP_SHARED, 0, SIZE},
      {"mmap shared, execute", PROT_READ | PROT_EXEC, MAP_SHARED, 0, SIZE},
      {"mmap private, write", READ_WRITE, MAP_PRIVATE, 0, SIZE},
      {"mmap shared validated", READ_WRITE, MAP_SHARED_VALIDATE, 0, SIZE},
      {"mmap shared validated, unknown flag", READ_WRITE, MAP_SHARED_VALIDATE | 1 << 28, 0, SIZE},
      {"mmap populate", READ_WRITE, MAP_SHARED | MAP_POPULATE, 0, SIZE},
      {"mmap populate, do not block", READ_WRITE, MAP_SHARED | MAP_POPULATE | MAP_NONBLOCK, 0,
       SIZE},
      {"mmap without reservation", READ_WRITE, MAP_SHARED | MAP_NORESERVE, 0, SIZE},
      {"mmap growing down", READ_WRITE, MAP_SHARED | MAP_GROWSDOWN, 0, SIZE},
      {"mmap at an odd offset", READ_WRITE, MAP_SHARED, 100, SIZE},
      {"mmap of nothing", READ_WRITE, MAP_SHARED, 0, 0},
      {"mmap of an odd length", READ_WRITE, MAP_SHARED, 0, 5000},
      {"mmap of the last page", READ_WRITE, MAP_SHARED, SIZE - PAGE, PAGE},
      {"mmap without a type", READ_WRITE, 0, 0, SIZE},
      {"mmap locked", READ_WRITE, MAP_SHARED | MAP_LOCKED, 0, SIZE},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    CALL(all[i].name,
         mapped(mmap(NULL, all[i].length, all[i].protection, all[i].flags, fd, all[i].offset),
                all[i].length ? all[i].length : PAGE));
  CALL("mmap fixed over a part, the same file",
       mmap(memory + 8 * PAGE, PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 8 * PAGE) == MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed over a part, read only",
       mmap(memory + 8 * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 8 * PAGE) == MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed over a part, anonymous",
       mmap(memory + 8 * PAGE, 100, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
               MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed over a part, another file",
       mmap(memory + 8 * PAGE, PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, other, 0) == MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed at an odd address",
       mmap(memory + 100, PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? -1 : 0);
  CALL("mmap fixed, no replacing",
       mmap(memory + 8 * PAGE, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
            -1, 0) == MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed of the file, no replacing",
       mmap(memory + 8 * PAGE, PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) ==
               MAP_FAILED
           ? -1
           : 0);
  CALL("mmap fixed that fails",
       mmap(memory + 8 * PAGE, PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED, 999, 0) == MAP_FAILED ? -1
                                                                                               : 0);
  CALL("munmap of a part", munmap(memory + 8 * PAGE, PAGE));
  CALL("munmap of an odd length", munmap(memory + 8 * PAGE, 100));
  CALL("munmap at an odd address", munmap(memory + 100, PAGE));
  CALL("munmap of nothing", munmap(memory, 0));
}

static void advices(void) {
  char name[64];
  for (int advice = -1; advice <= 25; advice++) {
    snprintf(name, sizeof name, "madvise %d of a part", advice);
    CALL(name, madvise(memory + 8 * PAGE, PAGE, advice));
    snprintf(name, sizeof name, "madvise %d of all", advice);
    CALL(name, madvise(memory, SIZE, advice));
    snprintf(name, sizeof name, "madvise %d at an odd address", advice);
    CALL(name, madvise(memory + 100, PAGE, advice));
  }
  static const struct {
    const char* name;
    int advice;
  } each[] = {{"posix_fadvise away", POSIX_FADV_DONTNEED},
              {"posix_fadvise at random", POSIX_FADV_RANDOM}};
  for (size_t i = 0; i < 2; i++) {
    begin(each[i].name);
    const int err = posix_fadvise(fd, 0, SIZE, each[i].advice);
    tell(each[i].name, err ? -1 : 0, err);
    end();
  }
}

static void protections(void) {
  char name[64];
  for (int protection = 0; protection < 8; protection++) {
    snprintf(name, sizeof name, "mprotect %d of a part", protection);
    CALL(name, mprotect(memory + 8 * PAGE, PAGE, protection));
    snprintf(name, sizeof name, "mprotect %d of a part and back", protection);
    CALL(name, mprotect(memory + 8 * PAGE, 100, protection) |
                   mprotect(memory + 8 * PAGE, PAGE, READ_WRITE));
  }
  CALL("mprotect at an odd address", mprotect(memory + 100, PAGE, PROT_READ));
  CALL("mprotect of nothing", mprotect(memory, 0, PROT_READ));
  CALL("mprotect with unknown bits", mprotect(memory, PAGE, 1 << 20));
  CALL("pkey_mprotect without a key", pkey_mprotect(memory + 8 * PAGE, PAGE, PROT_READ, -1));
}

static long moved(void* at) { return at == MAP_FAILED ? -1 : 0; }

static void moves(void) {
  CALL("mremap to the same length", moved(mremap(memory, SIZE, SIZE, 0)));
  CALL("mremap to half", moved(mremap(memory, SIZE, SIZE / 2, 0)));
  CALL("mremap to an odd length", moved(mremap(memory, SIZE, SIZE / 2 + 100, 0)));
  CALL("mremap to nothing", moved(mremap(memory, SIZE, 0, 0)));
  CALL("mremap at an odd address", moved(mremap(memory + 100, PAGE, PAGE, 0)));
  begin("mremap of anonymous memory onto a part");
  char* block = mmap(NULL, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *block = 0x11;
  errno = 0;
  const long onto =
      moved(mremap(block, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 8 * PAGE));
  tell(doing, onto, errno);
  end();
  CALL("mremap with an old length of nothing", moved(mremap(memory, 0, PAGE, MREMAP_MAYMOVE)));
  begin("mremap to another place");
  char* place = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  errno = 0;
  char* const found = mremap(memory, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  const int err = errno;
  if (found != MAP_FAILED) memory = found;
  tell(doing, moved(found), err);
  end();
  CALL("remap_file_pages", remap_file_pages(memory, PAGE, 0, 8, 0));
}

static void syncs(void) {
  CALL("msync", msync(memory, SIZE, MS_SYNC));
  CALL("msync later", msync(memory, SIZE, MS_ASYNC));
  CALL("msync, both", msync(memory, SIZE, MS_SYNC | MS_ASYNC));
  CALL("msync, invalidating", msync(memory, SIZE, MS_SYNC | MS_INVALIDATE));
  CALL("msync of a part", msync(memory + 8 * PAGE, 100, MS_SYNC));
  CALL("msync at an odd address", msync(memory + 100, PAGE, MS_SYNC));
  CALL("fsync", fsync(fd));
  CALL("fdatasync", fdatasync(fd));
  CALL("sync_file_range", sync_file_range(fd, 0, SIZE, SYNC_FILE_RANGE_WRITE));
  CALL("fallocate, punching",
       fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * PAGE, PAGE));
  CALL("fallocate, punching an odd range",
       fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * PAGE + 50, 100));
  CALL("fallocate of nothing", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 0));
  CALL("fallocate before the beginning",
       fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, -PAGE, PAGE));
  CALL("fallocate, collapsing", fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE));
}

/* The page cache of other files is filled from the mapping and written to it. */
static void copies(void) {
  CALL("read into it", pread(other, memory + 8 * PAGE, PAGE, 0));
  CALL("write from it", pwrite(other, memory + 8 * PAGE, PAGE, 0));
  begin("process_vm_readv");
  char bytes[PAGE];
  struct iovec local = {bytes, PAGE}, remote = {memory + 8 * PAGE, PAGE};
  errno = 0;
  tell(doing, process_vm_readv(getpid(), &local, 1, &remote, 1, 0), errno);
  end();
  begin("process_vm_writev");
  memset(bytes, 0x77, PAGE);
  remote.iov_base = memory + 8 * PAGE;
  errno = 0;
  tell(doing, process_vm_writev(getpid(), &local, 1, &remote, 1, 0), errno);
  end();
  begin("vmsplice");
  int pipes[2];
  if (pipe(pipes) < 0) exit(1);
  remote.iov_base = memory + 8 * PAGE;
  errno = 0;
  tell(doing, vmsplice(pipes[1], &remote, 1, 0), errno);
  close(pipes[0]);
  close(pipes[1]);
  end();
  begin("a system call that writes into it");
  errno = 0;
  tell(doing, getcwd(memory + 8 * PAGE, PAGE) ? 0 : -1, errno);
  end();
}

static void rest(void) {
  unsigned char resident[PAGES];
  CALL("mincore", mincore(memory, SIZE, resident));
  CALL("mlock", mlock(memory + 8 * PAGE, PAGE));
  CALL("mlock2 on fault", mlock2(memory + 8 * PAGE, PAGE, MLOCK_ONFAULT));
  CALL("munlock", munlock(memory + 8 * PAGE, PAGE));
  unsigned long nodes = 1;
  CALL("mbind", syscall(SYS_mbind, memory + 8 * PAGE, PAGE, 1 /* preferred */, &nodes, 64ul, 0u));
  CALL("mbind, moving", syscall(SYS_mbind, memory, SIZE, 1, &nodes, 64ul, 2u));
  begin("move_pages");
  void* page = memory + 8 * PAGE;
  int status = 0;
  errno = 0;
  tell(doing, syscall(SYS_move_pages, 0, 1ul, &page, NULL, &status, 0), errno);
  end();
  CALL("a name for it", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory + 8 * PAGE, PAGE, "mine"));
  begin("process_madvise");
  struct iovec part = {memory + 8 * PAGE, PAGE};
  const int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  errno = 0;
  tell(doing, syscall(SYS_process_madvise, self, &part, 1ul, MADV_COLD, 0u), errno);
  close(self);
  end();
  begin("fork, and a child that ends");
  const pid_t child = fork();
  if (child == 0) _exit(0);
  errno = 0;
  tell(doing, waitpid(child, NULL, 0), errno);
  end();
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  fd = open(argv[1], O_RDWR);
  other = open(argv[2], O_RDWR);
  if (fd < 0 || other < 0) return perror("open"), 1;
  signal(SIGBUS, caught);
  signal(SIGSEGV, caught);
  signal(SIGALRM, hung);
  /* While one is mapped the file stays attached: attaching takes long on a busy machine. */
  if (mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, fd, SIZE) == MAP_FAILED) return perror("mmap"), 1;
  maps();
  advices();
  protections();
  moves();
  syncs();
  copies();
  rest();
  puts("end");
  return 0;
}
