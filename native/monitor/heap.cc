// The monitor's own heap: operator new and operator delete of the library. A thread that serves
// faults must not call the application's malloc(3), because a thread of the application may hold
// the allocator's locks while it accesses an image: an allocator whose memory is an image; a signal
// handler that stores into an image and has interrupted malloc(3), or fork(2), which holds all
// locks of malloc. The fault would wait for the allocator, and the allocator for the fault.
//
// The heap gets its memory from the kernel, page by page, and manages it with the pools of the C++
// library. Its one lock is held for moments only, and never while application memory is accessed. A
// child of fork(2), _Fork(3) or clone(2) begins with an empty heap: the parent's may have been
// copied in the middle of a change. Memory of the parent that the child frees is not reused.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory_resource>
#include <new>

#include "attach/clock.h"
#include "attach/system_calls.h"
#include "engine/disk/bus_guard.h"
#include "engine/disk/page.h"
#include "monitor/inside.h"

namespace pcow {
namespace {

void* map_pages(size_t length) {
  void* const pages = system_mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return pages;
}

class Pages : public std::pmr::memory_resource {
  void* do_allocate(size_t length, size_t) override { return map_pages(length); }
  void do_deallocate(void* pages, size_t length, size_t) override { system_munmap(pages, length); }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
};

// Lies on a page that a child gets as zeros (madvise(2), MADV_WIPEONFORK). Zeros mean a free lock,
// and no pools yet.
struct Heap {
  pthread_mutex_t lock;
  // Of the pools; 0: there are none yet. No process that has a copy of this memory has the same
  // generation.
  uint64_t generation;
  alignas(Pages) std::byte pages[sizeof(Pages)];
  alignas(std::pmr::unsynchronized_pool_resource)
      std::byte pools[sizeof(std::pmr::unsynchronized_pool_resource)];
};
static_assert(sizeof(Heap) <= kPageSize);

// Stands before each allocation. It has 16 bytes, so that the allocation is aligned as by
// malloc(3).
struct Header {
  uint64_t generation;
  uint32_t offset;  // bytes from the beginning of the piece to the allocation
  uint32_t units;   // length of the piece, in units of 16 bytes
};
static_assert(sizeof(Header) == 16);
constexpr size_t kUnit = sizeof(Header);
// Bytes. Freed copy buffers of up to this size are kept for the next use, because each new page
// from the kernel costs a fault.
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

uint64_t new_generation() { return monotonic_ns() << 22 | static_cast<uint64_t>(getpid()); }

// The locked heap, with its pools. In a child it makes new ones.
class Locked {
 public:
  Locked() {
    pthread_mutex_lock(&heap_->lock);
    if (heap_->generation) return;
    auto* const pages = new (heap_->pages) Pages;
    new (heap_->pools) std::pmr::unsynchronized_pool_resource(
        {.largest_required_pool_block = kLargestPooled}, pages);
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

// On a thread of the application, signals are blocked meanwhile: a signal handler that accesses an
// image waits for a thread that needs the heap.
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

// Throws std::bad_alloc if the process may not have more memory. `alignment`: a power of two.
void* allocate(size_t length, size_t alignment) {
  // The pools align multiples of 16 bytes to 16 bytes. Larger alignments are made here.
  const size_t more = alignment > kUnit ? alignment : 0;
  if (length > kMost - sizeof(Header) - more - kUnit) throw std::bad_alloc();
  const size_t whole = (length + sizeof(Header) + more + kUnit - 1) / kUnit * kUnit;
  return with_heap([&](Locked& heap) {
    auto* const piece = static_cast<std::byte*>(heap.pools().allocate(whole, kUnit));
    size_t offset = sizeof(Header);
    if (more) offset += -(reinterpret_cast<uintptr_t>(piece) + offset) % alignment;
    auto* const given = piece + offset;
    new (given - sizeof(Header)) Header{heap.generation(), static_cast<uint32_t>(offset),
                                        static_cast<uint32_t>(whole / kUnit)};
    return given;
  });
}

void release(void* given) {
  if (!given) return;
  const Header header =
      *std::launder(reinterpret_cast<Header*>(static_cast<std::byte*>(given) - sizeof(Header)));
  with_heap([&](Locked& heap) {
    if (header.generation != heap.generation()) return;  // the parent's
    heap.pools().deallocate(static_cast<std::byte*>(given) - header.offset, header.units * kUnit,
                            kUnit);
  });
}

}  // namespace
}  // namespace pcow

// The C++ library implements the other forms (nothrow, arrays) with these. The linker does not
// export them (exports.version).
void* operator new(size_t length) { return pcow::allocate(length, 1); }
void* operator new(size_t length, std::align_val_t alignment) {
  return pcow::allocate(length, static_cast<size_t>(alignment));
}
void operator delete(void* given) noexcept { pcow::release(given); }
void operator delete(void* given, size_t) noexcept { pcow::release(given); }
void operator delete(void* given, std::align_val_t) noexcept { pcow::release(given); }
void operator delete(void* given, size_t, std::align_val_t) noexcept { pcow::release(given); }
