/*
 * A program with an allocator of its own, as jemalloc and others are: one lock, and mmap(2) and
 * munmap(2) under it. It keeps account in an image, as allocators for persistent memory do: under
 * its lock it stores into the image, and the fault must not need the allocator.
 *
 *   own-allocator FLATFILE      says "ok"
 *   own-allocator FLATFILE OTHER
 *       says "open", reads a line, and unmaps the other file in a second thread: that mount may not
 *       answer. Meanwhile the allocator gives pages of the image back under its lock. Says "ok"; it
 *       ends when its input does
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static char* image;                   /* the mapping, once it is there */
static size_t length_of_image, noted; /* bytes */

static int gives_back;

static size_t whole(size_t length) { return (length + 16 + 4095) & ~(size_t)4095; }

void* malloc(size_t length) {
  pthread_mutex_lock(&lock);
  char* memory =
      mmap(NULL, whole(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (image && noted < length_of_image) {
    image[noted] = 3;
    if (gives_back) madvise(image + noted, 4096, MADV_REMOVE);
    noted += 16384;
  }
  pthread_mutex_unlock(&lock);
  if (memory == MAP_FAILED) return NULL;
  *(size_t*)memory = length;
  return memory + 16;
}

void free(void* pointer) {
  if (!pointer) return;
  char* memory = (char*)pointer - 16;
  const size_t length = whole(*(size_t*)memory);
  pthread_mutex_lock(&lock);
  munmap(memory, length);
  pthread_mutex_unlock(&lock);
}

void* calloc(size_t count, size_t size) { return malloc(count * size); }

void* realloc(void* pointer, size_t length) {
  char* fresh = malloc(length);
  if (!fresh || !pointer) return fresh;
  const size_t before = *(size_t*)((char*)pointer - 16);
  memcpy(fresh, pointer, before < length ? before : length);
  free(pointer);
  return fresh;
}

void* aligned_alloc(size_t alignment, size_t length) {
  return alignment <= 16 ? malloc(length) : NULL;
}
void* memalign(size_t alignment, size_t length) { return aligned_alloc(alignment, length); }
int posix_memalign(void** result, size_t alignment, size_t length) {
  *result = aligned_alloc(alignment, length);
  return *result ? 0 : ENOMEM;
}

static void* unmap_other(void* memory) {
  munmap(memory, 4096);
  return NULL;
}

/* Waits until the other thread is in its call, and a thread of the monitor waits for that mount. */
static int begin_unmapping(int other) {
  char line[16];
  pthread_t thread;
  void* memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
  if (memory == MAP_FAILED) return 1;
  if (write(1, "open\n", 5) != 5 || read(0, line, sizeof line) < 1) return 1;
  if (pthread_create(&thread, NULL, unmap_other, memory)) return 1;
  return usleep(200000);
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return 1;
  char* memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return 1;
  if (argc > 2) {
    const int other = open(argv[2], O_RDWR);
    if (other < 0 || begin_unmapping(other)) return 1;
    gives_back = 1;
  }
  length_of_image = (size_t)status.st_size;
  image = memory;
  while (noted < length_of_image) {
    char* volatile own = malloc(100000);
    own[0] = 1;
    free(own);
  }
  char line[16];
  if (write(1, "ok\n", 3) != 3) return 1;
  return argc > 2 ? read(0, line, sizeof line) != 0 : 0;
}
