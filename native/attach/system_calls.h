// The system calls behind the functions that the preloaded library interposes: the monitor itself
// must not run into its own hooks.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
// The sanitizer's own munmap(2), which a program's hook does not replace.
extern "C" int __interceptor_munmap(void* address, size_t length);
#endif

namespace pcow {

inline void* system_mmap(void* address, size_t length, int protection, int flags, int descriptor,
                         off_t offset) {
  // The wrapper of syscall(2) sets errno and returns -1, which is MAP_FAILED.
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, length, protection, flags, descriptor, offset));
}

inline int system_munmap(void* address, size_t length) {
#if defined(__SANITIZE_THREAD__)
  // Otherwise the sanitizer takes what is mapped at this address next for the same memory, and
  // reports races with accesses to the former.
  return __interceptor_munmap(address, length);
#else
  return static_cast<int>(syscall(SYS_munmap, address, length));
#endif
}

inline void* system_mremap(void* old, size_t old_length, size_t length, int flags, void* address) {
  return reinterpret_cast<void*>(syscall(SYS_mremap, old, old_length, length, flags, address));
}

inline int system_mprotect(void* address, size_t length, int protection) {
  return static_cast<int>(syscall(SYS_mprotect, address, length, protection));
}

inline int system_madvise(void* address, size_t length, int advice) {
  return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}

}  // namespace pcow
