// The system calls behind the functions that the preloaded library interposes: the monitor itself
// must not run into its own hooks.
//
// Static, because hooks.cc is compiled without the thread sanitizer even where the rest is not.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
// The sanitizer's own functions, which are not interposed. It must know where memory begins and
// ends: otherwise it takes what is mapped at an address next for the same memory, and reports races
// with accesses to the former.
extern "C" void* __interceptor_mmap(void* address, size_t length, int protection, int flags,
                                    int descriptor, off_t offset);
extern "C" int __interceptor_munmap(void* address, size_t length);
#endif

namespace pcow {

static inline void* system_mmap(void* address, size_t length, int protection, int flags,
                                int descriptor, off_t offset) {
#if defined(__SANITIZE_THREAD__)
  // Not what replaces a mapping: the sanitizer would take it for a store to that memory.
  if (!(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
    return __interceptor_mmap(address, length, protection, flags, descriptor, offset);
#endif
  // The wrapper of syscall(2) sets errno and returns -1, which is MAP_FAILED.
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, length, protection, flags, descriptor, offset));
}

static inline int system_munmap(void* address, size_t length) {
#if defined(__SANITIZE_THREAD__)
  return __interceptor_munmap(address, length);
#else
  return static_cast<int>(syscall(SYS_munmap, address, length));
#endif
}

static inline void* system_mremap(void* old, size_t old_length, size_t length, int flags,
                                  void* address) {
  return reinterpret_cast<void*>(syscall(SYS_mremap, old, old_length, length, flags, address));
}

static inline int system_mprotect(void* address, size_t length, int protection) {
  return static_cast<int>(syscall(SYS_mprotect, address, length, protection));
}

static inline int system_madvise(void* address, size_t length, int advice) {
  return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}

}  // namespace pcow
