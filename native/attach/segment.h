// A segment of the clean store (store/clean_store.h): shared memory with 64 MiB of what a frozen
// layer reads as. The mount fills it, slice by slice; monitors map the slices that are filled.
// After the content there is one page with a bit for each filled slice.
//
// A slice that is filled never changes. A slice that is not filled must not be touched through a
// mapping: the kernel would put a page of zeros there, for everybody.
#pragma once

#include <fcntl.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace pcow::segment {

inline constexpr uint64_t kSliceSize = uint64_t{512} << 10;  // bytes
inline constexpr uint64_t kSlices = 128;
inline constexpr uint64_t kContent = kSlices * kSliceSize;  // bytes
inline constexpr uint64_t kLength = kContent + 4096;        // bytes of the memfd
// The mount makes large pages where whole ones are wanted at once.
inline constexpr uint64_t kLargePage = uint64_t{2} << 20;

// At offset kContent. Set after the slice's content was written.
using Filled = std::array<std::atomic<uint64_t>, kSlices / 64>;

inline bool is_filled(const Filled& filled, uint64_t slice) {
  return filled[slice / 64].load(std::memory_order_acquire) >> (slice % 64) & 1;
}

// Nobody who gets a descriptor can change the content or the length, whatever the descriptor is
// opened again for. The mount writes through a mapping that is older than the seals.
// memfd_create(2)
inline constexpr int kSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace pcow::segment
