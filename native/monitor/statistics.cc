#include "monitor/statistics.h"

#include <bit>
#include <ctime>

namespace pcow {

const char* fault_kind_name(FaultKind kind) {
  switch (kind) {
    case FaultKind::kExpansion: return "expansion";
    case FaultKind::kCopyOnWrite: return "copy_on_write";
    case FaultKind::kCleanCopy: return "clean_copy";
    case FaultKind::kMapping: return "mapping";
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

// In metrics a counter's name ends in "_total", and times are in seconds; in status each has its plain name.
struct Figure {
  const char* name;
  const char* metric;
  const char* type;
  const std::atomic<uint64_t> Statistics::*value;
  const char* help;
  bool nanoseconds = false;
};

constexpr Figure kFigures[] = {
    {"copied_bytes", "copied_bytes_total", "counter", &Statistics::copied_bytes, "Bytes copied from lower layers."},
    {"clean_cache_bytes", "clean_cache_bytes", "gauge", &Statistics::clean_bytes,
     "Resident clean copies of lower blocks."},
    {"clean_cache_dropped_bytes", "clean_cache_dropped_bytes_total", "counter", &Statistics::clean_dropped,
     "Clean copies dropped for the budget."},
    {"mappings", "mappings", "gauge", &Statistics::mappings, "Memory mappings in use (an upper estimate)."},
    {"promotions", "promotions_total", "counter", &Statistics::promotions, "Fragmented chunks that were completed."},
    {"stalls", "stalls_total", "counter", &Statistics::stalls, "Faults that found no disk space and waited."},
    {"stalled", "stalled", "gauge", &Statistics::stalled_now, "Faults that wait for disk space now."},
    {"live_snapshots", "live_snapshots_total", "counter", &Statistics::snapshots, "Snapshots of the running guest."},
    {"last_freeze_nanoseconds", "last_freeze_seconds", "gauge", &Statistics::last_freeze_ns,
     "How long the last snapshot froze the memory.", true},
    {"monitor_syncs", "monitor_syncs_total", "counter", &Statistics::syncs, "Flushes of the guest."},
};

}  // namespace

std::string Statistics::json() const {
  std::string text = "{\"faults\":{";
  for (size_t kind = 0; kind < kFaultKinds; kind++) {
    const Histogram& histogram = faults[kind];
    text += std::string(kind ? "," : "") + "\"" + fault_kind_name(static_cast<FaultKind>(kind)) +
            "\":{\"count\":" + std::to_string(histogram.count()) +
            ",\"p50Us\":" + std::to_string(histogram.quantile_us(0.5)) +
            ",\"p99Us\":" + std::to_string(histogram.quantile_us(0.99)) + "}";
  }
  text += "}";
  for (const Figure& figure : kFigures)
    text += std::string(",\"") + figure.name + "\":" + std::to_string((this->*figure.value).load());
  return text + "}";
}

std::string Statistics::prometheus() const {
  std::string text;
  const std::string name = "pcow_fault_seconds";
  text += "# HELP " + name + " Time from a page fault's event to its answer.\n# TYPE " + name + " histogram\n";
  for (size_t kind = 0; kind < kFaultKinds; kind++) {
    const Histogram& histogram = faults[kind];
    const std::string labels = std::string("kind=\"") + fault_kind_name(static_cast<FaultKind>(kind)) + "\"";
    uint64_t sum = 0;
    for (size_t i = 0; i + 1 < Histogram::kBuckets; i++) {
      sum += histogram.bucket(i);
      text += name + "_bucket{" + labels + ",le=\"" + std::to_string(static_cast<double>(uint64_t{1} << i) / 1e6) +
              "\"} " + std::to_string(sum) + "\n";
    }
    text += name + "_bucket{" + labels + ",le=\"+Inf\"} " + std::to_string(histogram.count()) + "\n";
    text += name + "_sum{" + labels + "} " + std::to_string(static_cast<double>(histogram.sum_ns()) / 1e9) + "\n";
    text += name + "_count{" + labels + "} " + std::to_string(histogram.count()) + "\n";
  }
  for (const Figure& figure : kFigures) {
    const uint64_t value = (this->*figure.value).load();
    const std::string metric = std::string("pcow_") + figure.metric;
    text += "# HELP " + metric + " " + figure.help + "\n# TYPE " + metric + " " + figure.type + "\n" + metric + " " +
            (figure.nanoseconds ? std::to_string(static_cast<double>(value) / 1e9) : std::to_string(value)) + "\n";
  }
  return text;
}

uint64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace pcow
