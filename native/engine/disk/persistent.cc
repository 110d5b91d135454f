#include "engine/disk/persistent.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "engine/disk/page.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <emmintrin.h>
#endif

namespace pcow {
namespace cpu {

#if defined(__x86_64__)

namespace {

enum class Flush { kNone, kClflush, kClflushopt, kClwb };

Flush best_flush() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    if (b & (1u << 24)) return Flush::kClwb;
    if (b & (1u << 23)) return Flush::kClflushopt;
  }
  if (__get_cpuid(1, &a, &b, &c, &d) && (d & (1u << 19))) return Flush::kClflush;
  return Flush::kNone;
}

Flush flush_instruction() {
  static const Flush best = best_flush();
  return best;
}

char* line_of(const void* address) {
  return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(address) & ~(kCacheLine - 1));
}

}  // namespace

bool can_flush() { return flush_instruction() != Flush::kNone; }

// Emits the instructions as GCC would with -mclwb and -mclflushopt. With these options GCC could
// use them on processors that lack them.
void flush(const void* from, size_t length) {
  const char* const end = static_cast<const char*>(from) + length;
  switch (flush_instruction()) {
    case Flush::kClwb:
      for (char* line = line_of(from); line < end; line += kCacheLine)
        asm volatile(".byte 0x66; xsaveopt %0" : "+m"(*line));
      break;
    case Flush::kClflushopt:
      for (char* line = line_of(from); line < end; line += kCacheLine)
        asm volatile(".byte 0x66; clflush %0" : "+m"(*line));
      break;
    case Flush::kClflush:
    case Flush::kNone:
      for (char* line = line_of(from); line < end; line += kCacheLine) _mm_clflush(line);
      break;
  }
}

void fence() { _mm_sfence(); }

void copy(void* to, const void* from, size_t length) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  const auto by_the_caches = [&](size_t count) {
    if (count == 0) return;
    memcpy(target, source, count);
    flush(target, count);
    target += count;
    source += count;
    length -= count;
  };
  by_the_caches(std::min(length, static_cast<size_t>(line_of(target + kCacheLine - 1) - target)));
  for (; length >= kCacheLine; length -= kCacheLine, target += kCacheLine, source += kCacheLine) {
    auto* const line = reinterpret_cast<__m128i*>(target);
    for (int i = 0; i < 4; i++)
      _mm_stream_si128(line + i, _mm_loadu_si128(reinterpret_cast<const __m128i*>(source) + i));
  }
  by_the_caches(length);
}

void touch(void* from, size_t length) {
  for (auto* page = static_cast<char*>(from); page < static_cast<char*>(from) + length;
       page += kPageSize)
    asm volatile("lock orq $0, %0" : "+m"(*reinterpret_cast<uint64_t*>(page)) : : "memory", "cc");
}

#else

bool can_flush() { return false; }
void flush(const void*, size_t) {}
void fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
void copy(void* to, const void* from, size_t length) { memcpy(to, from, length); }
void touch(void* from, size_t length) {
  for (auto* page = static_cast<char*>(from); page < static_cast<char*>(from) + length;
       page += kPageSize)
    std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(page)).fetch_add(0);
}

#endif

}  // namespace cpu

bool is_in_persistent_memory(int descriptor) {
  struct statx status;
  if (!cpu::can_flush() ||
      statx(descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &status) != 0)
    return false;
  if (!(status.stx_attributes_mask & status.stx_attributes & STATX_ATTR_DAX)) return false;
  // Only a mapping that the kernel grants counts: the device may be too slow for it, or its driver
  // may not support it (mmap(2), MAP_SYNC).
  void* const tried =
      mmap(nullptr, kPageSize, PROT_NONE, MAP_SHARED_VALIDATE | MAP_SYNC, descriptor, 0);
  if (tried == MAP_FAILED) return false;
  munmap(tried, kPageSize);
  return true;
}

}  // namespace pcow
