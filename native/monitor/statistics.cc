#include "monitor/statistics.h"

#include <bit>
#include <ctime>

namespace pcow {

const char* fault_kind_name(FaultKind kind) {
  switch (kind) {
    case FaultKind::kExpansion: return "expansion";
    case FaultKind::kCopyOnWrite: return "copyOnWrite";
    case FaultKind::kCleanCopy: return "cleanCopy";
    case FaultKind::kMapping: return "mapping";
    case FaultKind::kSharing: return "sharing";
  }
  return "";
}

void Histogram::add(uint64_t nanoseconds) {
  const auto bucket = static_cast<size_t>(std::bit_width(nanoseconds / 1000));
  buckets_[bucket < kBuckets ? bucket : kBuckets - 1].fetch_add(1, std::memory_order_relaxed);
  count_.fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(nanoseconds, std::memory_order_relaxed);
}

uint64_t Histogram::quantile_us(double fraction) const {
  const auto wanted = static_cast<uint64_t>(fraction * static_cast<double>(count()));
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; i++) {
    seen += bucket(i);
    if (seen > wanted) return uint64_t{1} << i;
  }
  return 0;
}

namespace {

struct Figure {
  const char* name;
  const std::atomic<uint64_t> Statistics::*value;
};

constexpr Figure kFigures[] = {
    {"copiedBytes", &Statistics::copied_bytes},
    {"cleanCacheBytes", &Statistics::clean_bytes},
    {"cleanCacheDroppedBytes", &Statistics::clean_dropped},
    {"sharedBytes", &Statistics::shared_bytes},
    {"ownBytes", &Statistics::own_bytes},
    {"mappings", &Statistics::mappings},
    {"promotions", &Statistics::promotions},
    {"demotions", &Statistics::demotions},
    {"stalls", &Statistics::stalls},
    {"stalled", &Statistics::stalled_now},
    {"fetching", &Statistics::fetching_now},
    {"liveSnapshots", &Statistics::snapshots},
    {"lastFreezeNs", &Statistics::last_freeze_ns},
    {"monitorSyncs", &Statistics::syncs},
};

}  // namespace

std::string Statistics::json() const {
  std::string text = "{\"faults\":{";
  for (size_t kind = 0; kind < kFaultKinds; kind++) {
    const Histogram& histogram = faults[kind];
    text += std::string(kind ? "," : "") + "\"" + fault_kind_name(static_cast<FaultKind>(kind)) +
            "\":{\"count\":" + std::to_string(histogram.count()) +
            ",\"p50Us\":" + std::to_string(histogram.quantile_us(0.5)) +
            ",\"p99Us\":" + std::to_string(histogram.quantile_us(0.99)) +
            ",\"sumNs\":" + std::to_string(histogram.sum_ns()) + ",\"buckets\":[";
    for (size_t i = 0; i < Histogram::kBuckets; i++)
      text += std::to_string(histogram.bucket(i)) + ",";
    text.back() = ']';
    text += "}";
  }
  text += "}";
  for (const Figure& figure : kFigures)
    text += std::string(",\"") + figure.name + "\":" + std::to_string((this->*figure.value).load());
  return text + "}";
}

}  // namespace pcow
