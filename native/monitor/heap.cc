// The monitor's own heap: operator new and operator delete of the library. The application's malloc(3) must not be asked by a thread that
// serves faults, for an application's thread may hold the locks of its allocator while it touches an image: an allocator whose memory
// is an image; a signal handler that stores into an image and has interrupted malloc(3), or fork(2), which holds all of its locks. The
// fault would wait for the allocator, and the allocator for the fault.
//
// Its memory comes from the kernel, page by page, through the pools of the C++ library, under one lock that is held for moments and never
// while application memory is touched. A child of fork(2), _Fork(3) or clone(2) begins with an empty heap: the parent's may have been
// copied in the middle of a change. What a child frees of its parent's stays.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <memory_resource>
#include <new>

#include "attach/system_calls.h"
#include "engine/disk/bus_guard.h"
#include "engine/disk/page.h"
#include "monitor/inside.h"

namespace pcow {
namespace {

void* map_pages(size_t length) {
  void* const pages =
      system_mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return pages;
}

class Pages : public std::pmr::memory_resource {
  void* do_allocate(size_t length, size_t) override { return map_pages(length); }
  void do_deallocate(void* pages, size_t length, size_t) override { system_munmap(pages, length); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

// On a page that the kernel gives to a child as zeros (madvise(2), MADV_WIPEONFORK). Zeros are a lock that is free, and no pools yet.
struct Heap {
  pthread_mutex_t lock;
  uint64_t generation;  // of the pools; 0: none yet. No other process that has a copy of what they gave has the same
  alignas(Pages) std::byte pages[sizeof(Pages)];
  alignas(std::pmr::unsynchronized_pool_resource) std::byte pools[sizeof(std::pmr::unsynchronized_pool_resource)];
};
static_assert(sizeof(Heap) <= kPageSize);

// Before what is handed out. 16 bytes, so that what follows is aligned as malloc(3) does it.
struct Header {
  uint64_t generation;
  uint32_t offset;  // bytes from the beginning of the piece to what is handed out
  uint32_t units;   // of 16 bytes: the length of the piece
};
static_assert(sizeof(Header) == 16);
constexpr size_t kUnit = sizeof(Header);
// Bytes. Buffers for copies are kept for the next one: each page that comes anew from the kernel is a fault.
constexpr size_t kLargestPooled = size_t{256} << 10;
constexpr size_t kMost = size_t{UINT32_MAX} * kUnit;

Heap* the_heap() {
  static std::atomic<Heap*> made{nullptr};
  Heap* heap = made.load(std::memory_order_acquire);
  if (heap) return heap;
  auto* const fresh = static_cast<Heap*>(map_pages(kPageSize));
  system_madvise(fresh, kPageSize, MADV_WIPEONFORK);
  if (made.compare_exchange_strong(heap, fresh, std::memory_order_acq_rel)) return fresh;
  system_munmap(fresh, kPageSize);
  return heap;
}

uint64_t new_generation() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec)) << 22 |
         static_cast<uint64_t>(getpid());
}

// The heap, locked; with its pools, also in a child.
class Locked {
 public:
  Locked() {
    pthread_mutex_lock(&heap_->lock);
    if (heap_->generation) return;
    auto* const pages = new (heap_->pages) Pages;
    new (heap_->pools) std::pmr::unsynchronized_pool_resource({.largest_required_pool_block = kLargestPooled}, pages);
    heap_->generation = new_generation();
  }
  ~Locked() { pthread_mutex_unlock(&heap_->lock); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

  uint64_t generation() const { return heap_->generation; }
  std::pmr::unsynchronized_pool_resource& pools() {
    return *std::launder(reinterpret_cast<std::pmr::unsynchronized_pool_resource*>(heap_->pools));
  }

 private:
  Heap* const heap_ = the_heap();
};

// On a thread of the application signals are held: a handler that touches an image waits for a thread that needs the heap.
template <typename Do>
auto with_heap(const Do& what) {
  if (Inside::active()) {
    Locked heap;
    return what(heap);
  }
  const SignalsHeld held;
  Locked heap;
  return what(heap);
}

// Throws std::bad_alloc where the process may have no more memory. `alignment`: a power of two.
void* allocate(size_t length, size_t alignment) {
  // The pools align to 16 bytes whatever is a multiple of that; the rest is left to us.
  const size_t more = alignment > kUnit ? alignment : 0;
  if (length > kMost - sizeof(Header) - more - kUnit) throw std::bad_alloc();
  const size_t whole = (length + sizeof(Header) + more + kUnit - 1) / kUnit * kUnit;
  return with_heap([&](Locked& heap) {
    auto* const piece = static_cast<std::byte*>(heap.pools().allocate(whole, kUnit));
    size_t offset = sizeof(Header);
    if (more) offset += -(reinterpret_cast<uintptr_t>(piece) + offset) % alignment;
    auto* const given = piece + offset;
    new (given - sizeof(Header))
        Header{heap.generation(), static_cast<uint32_t>(offset), static_cast<uint32_t>(whole / kUnit)};
    return given;
  });
}

void release(void* given) {
  if (!given) return;
  const Header header = *std::launder(reinterpret_cast<Header*>(static_cast<std::byte*>(given) - sizeof(Header)));
  with_heap([&](Locked& heap) {
    if (header.generation != heap.generation()) return;  // the parent's
    heap.pools().deallocate(static_cast<std::byte*>(given) - header.offset, header.units * kUnit, kUnit);
  });
}

}  // namespace
}  // namespace pcow

// Those that do not throw, and those for arrays, are made of these by the C++ library. The linker keeps them inside (exports.version).
void* operator new(size_t length) { return pcow::allocate(length, 1); }
void* operator new(size_t length, std::align_val_t alignment) {
  return pcow::allocate(length, static_cast<size_t>(alignment));
}
void operator delete(void* given) noexcept { pcow::release(given); }
void operator delete(void* given, size_t) noexcept { pcow::release(given); }
void operator delete(void* given, std::align_val_t) noexcept { pcow::release(given); }
void operator delete(void* given, size_t, std::align_val_t) noexcept { pcow::release(given); }
