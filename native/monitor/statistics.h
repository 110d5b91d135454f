// What a session counts. Its threads write and the control thread reads, so these are relaxed
// atomics.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "attach/clock.h"

namespace pcow {

enum class FaultKind { kExpansion, kCopyOnWrite, kCleanCopy, kMapping, kSharing };
inline constexpr size_t kFaultKinds = 5;
const char* fault_kind_name(FaultKind kind);

// Latencies in powers of two of a microsecond: bucket i counts those below 2^i µs; the last bucket
// counts the rest.
class Histogram {
 public:
  static constexpr size_t kBuckets = 22;
  void add(uint64_t nanoseconds);
  uint64_t bucket(size_t i) const { return buckets_[i].load(std::memory_order_relaxed); }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  uint64_t sum_ns() const { return sum_.load(std::memory_order_relaxed); }
  // An upper bound of the quantile, in microseconds.
  uint64_t quantile_us(double fraction) const;

 private:
  std::array<std::atomic<uint64_t>, kBuckets> buckets_{};
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> sum_{0};
};

struct Statistics {
  std::array<Histogram, kFaultKinds> faults;
  std::atomic<uint64_t> copied_bytes{0};
  std::atomic<uint64_t> clean_bytes{0};    // resident clean copies
  std::atomic<uint64_t> clean_dropped{0};  // bytes dropped for the budget
  std::atomic<uint64_t> shared_bytes{0};   // mapped from the clean store
  std::atomic<uint64_t> own_bytes{0};      // mapped from the image's own blocks
  std::atomic<uint64_t> mappings{0};       // estimate of mappings in use
  std::atomic<uint64_t> promotions{0};
  std::atomic<uint64_t> demotions{0};     // windows of the file that got small pages (demotion.h)
  std::atomic<uint64_t> stalls{0};        // faults that could not be served at once, and waited
  std::atomic<uint64_t> stalled_now{0};   // faults that wait now
  std::atomic<uint64_t> fetching_now{0};  // faults that wait until remote bytes have been fetched
  std::atomic<uint64_t> snapshots{0};
  std::atomic<uint64_t> last_freeze_ns{0};  // from the cut until the memory continued
  std::atomic<uint64_t> syncs{0};

  // A JSON object. The mount shows it in `status`, and makes `metrics` from it.
  std::string json() const;
};

}  // namespace pcow
