/* A program with an allocator of its own, as jemalloc and others are: one lock, and mmap(2) and munmap(2) under it.
 *
 *   own-allocator FLATFILE      says "ok"
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

static size_t whole(size_t length) { return (length + 16 + 4095) & ~(size_t)4095; }

void* malloc(size_t length) {
  pthread_mutex_lock(&lock);
  char* memory = mmap(NULL, whole(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

void* aligned_alloc(size_t alignment, size_t length) { return alignment <= 16 ? malloc(length) : NULL; }
void* memalign(size_t alignment, size_t length) { return aligned_alloc(alignment, length); }
int posix_memalign(void** result, size_t alignment, size_t length) {
  *result = aligned_alloc(alignment, length);
  return *result ? 0 : ENOMEM;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int fd = open(argv[1], O_RDWR);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return 1;
  char* memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return 1;
  for (off_t at = 0; at < status.st_size; at += 16384) {
    char* volatile own = malloc(100000);
    own[0] = 1;
    memory[at] = 3;
    free(own);
  }
  return write(1, "ok\n", 3) == 3 ? 0 : 1;
}
