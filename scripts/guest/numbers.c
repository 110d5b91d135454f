// The first process of a guest that only writes (the kernel's rdinit=/bin/numbers): numbers into
// the pages of /dev/pmem0, through a shared mapping, for as long as it lives. Each line that it
// says, on ttyS1, is true before it is said.
//
//   numbers PAGES FIRST
//
// Number N goes to page N * 37 % PAGES: 512 words, of which word i is N * 512 + i. "ready" comes
// before the first, "flushed N" when msync has returned for N and all before. Ends with "failed
// ERRNO" where it does not.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

enum { kPageSize = 4096, kWords = kPageSize / 8, kStep = 37, kFlushEvery = 16 };

static int port;

static void say(const char* word, uint64_t number) {
  dprintf(port, "%s %llu\n", word, (unsigned long long)number);
}

static void fail(void) {
  say("failed", (uint64_t)errno);
  for (;;) pause();
}

static void load_modules(void) {
  FILE* order = fopen("/modules/order", "r");
  char name[200];
  while (order && fscanf(order, "%180s", name) == 1) {
    char path[220];
    snprintf(path, sizeof path, "/modules/%s", name);
    const int module = open(path, O_RDONLY | O_CLOEXEC);
    if (module < 0 || (syscall(SYS_finit_module, module, "", 0) < 0 && errno != EEXIST)) fail();
    close(module);
  }
}

int main(int argc, char** argv) {
  mkdir("/dev", 0755);
  mount("devtmpfs", "/dev", "devtmpfs", 0, "");
  port = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
  struct termios raw;
  if (tcgetattr(port, &raw) == 0) {
    cfmakeraw(&raw);
    tcsetattr(port, TCSANOW, &raw);
  }
  errno = EINVAL;
  if (argc != 3) fail();
  const uint64_t pages = strtoull(argv[1], NULL, 10);
  load_modules();
  int disk;
  while ((disk = open("/dev/pmem0", O_RDWR)) < 0) usleep(10000);
  uint64_t* memory = mmap(NULL, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
  if (memory == MAP_FAILED) fail();
  say("ready", 0);
  for (uint64_t number = strtoull(argv[2], NULL, 10);; number++) {
    volatile uint64_t* page = memory + number * kStep % pages * kWords;
    for (uint64_t i = 0; i < kWords; i++) page[i] = number * kWords + i;
    if (number % kFlushEvery) continue;
    if (msync(memory, pages * kPageSize, MS_SYNC) < 0) fail();
    say("flushed", number);
  }
}
