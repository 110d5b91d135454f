#include "monitor/session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <utility>

#include "attach/system_calls.h"
#include "monitor/log.h"

namespace pcow {
namespace {

constexpr uint64_t kStallRetryMs = 100;
constexpr uint64_t kAwaitNs = 30'000;
constexpr uint64_t kSliceNs = 100'000;  // the least that the kernel takes
constexpr uint32_t kMostInVain = 4;     // times in a row
constexpr uint32_t kTryAgain = 16;      // … then every so often
constexpr uint64_t kBusyNs = 250'000;   // some times what it takes to serve a fault
constexpr uint64_t kCleanGroup = 4;     // units that come back together
constexpr uint64_t kStallReportNs = 10'000'000'000;
constexpr int64_t kWorthPromoting = 8;  // boundaries; completing a chunk for less gains nothing

RegionGeometry region_geometry(const ImageInfo& info) {
  const auto sub_block_shift = static_cast<uint32_t>(std::countr_zero(info.sub_block_size));
  const auto block_shift = static_cast<uint32_t>(std::countr_zero(info.block_size));
  return {sub_block_shift, block_shift + 9};
}

// A short slice, so that this thread, when a fault wakes it, need not wait until whoever has its processor has used up one of the
// usual milliseconds: sched(7), sched_setattr(2); Linux 6.12 and newer, others ignore it. What it may use in all stays the same.
void ask_for_short_slices() {
  struct {  // of <linux/sched/types.h>, which does not go together with <sched.h>
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) < 0 || attributes.policy != 0) return;
  attributes.size = sizeof attributes;
  attributes.runtime = kSliceNs;
  (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace

Session::Session(std::unique_ptr<Image> image, std::unique_ptr<FaultDescriptor> faults, const Limits& limits)
    : image_(std::move(image)),
      faults_(std::move(faults)),
      limits_(limits),
      writable_(image_->info().writable),
      geometry_(region_geometry(image_->info())),
      clean_unit_(std::max<uint64_t>(geometry_.sub_block_size(), std::min<uint64_t>(image_->info().block_size, 65536))),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      buffer_(clean_unit_ + Region::kLargestRead) {}

Result<std::unique_ptr<Session>> Session::start(std::unique_ptr<Image> image, const Limits& limits) {
  auto faults = FaultDescriptor::open();
  if (!faults) return faults.error();
  std::unique_ptr<Session> session(new Session(std::move(image), std::move(*faults), limits));
  if (session->wake_ < 0) return system_error(errno, "cannot make an eventfd");
  PCOW_TRY(session->fault_thread_.start("pcow-faults", [serving = session.get()] { serving->serve_faults(); }));
  return session;
}

Session::~Session() {
  ended_ = true;
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
  fault_thread_.join();
  if (wake_ >= 0) ::close(wake_);
}

void Session::release_handling() {
  handling_.unlock();
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

// false: there was none.
bool Session::read_events(std::deque<Fault>* waiting) {
  struct uffd_msg events[64];
  size_t all = 0;
  for (size_t count = 64; count == 64; all += count) {
    count = faults_->read(events, 64);
    const uint64_t now = count ? monotonic_ns() : 0;
    for (size_t i = 0; i < count; i++) {
      if (events[i].event != UFFD_EVENT_PAGEFAULT) continue;  // a remap: reading it is all it needs
      const auto& fault = events[i].arg.pagefault;
      waiting->push_back({reinterpret_cast<char*>(fault.address & ~uint64_t{4095}),
                          (fault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)) != 0, now});
    }
  }
  return all > 0;
}

// Faults come in bursts, and to be woken takes longer than to serve one: for a moment after the last one the thread looks again by
// itself. It does not yield: the scheduler counts that against it, and makes it wait for milliseconds behind whoever comes later.
// Where looking is in vain, it mostly sleeps at once: the faulting thread may be waiting for this processor. false: none came.
bool Session::await_fault(std::deque<Fault>* waiting) {
  if (in_vain_ >= kMostInVain && ++in_vain_ % kTryAgain != 0) return false;
  for (const uint64_t end = monotonic_ns() + kAwaitNs; monotonic_ns() < end;) {
    if (read_events(waiting)) {
      in_vain_ = 0;
      return true;
    }
  }
  in_vain_++;
  return false;
}

// The fault thread. It always reads events, whoever holds `handling`: an mremap under way waits for that. Page faults are
// served only while it holds `handling` itself.
void Session::serve_faults() {
  ask_for_short_slices();
  std::deque<Fault> waiting;
  std::deque<Fault> stalled;
  uint64_t retry_at = 0;
  bool served = false;
  while (!ended_) {
    if (!served || !await_fault(&waiting)) {
      struct pollfd ready[] = {{faults_->descriptor(), POLLIN, 0}, {wake_, POLLIN, 0}};
      poll(ready, 2, stalled.empty() && waiting.empty() ? -1 : static_cast<int>(kStallRetryMs));
      uint64_t ignored;
      if (ready[1].revents) (void)!read(wake_, &ignored, sizeof ignored);
    }
    (void)read_events(&waiting);
    served = false;
    if (!handling_.try_lock()) continue;  // whoever has it writes to `wake_` when it is free
    if (!stalled.empty() && monotonic_ns() >= retry_at) {
      waiting.insert(waiting.begin(), stalled.begin(), stalled.end());
      stalled.clear();
    }
    while (!waiting.empty()) {
      served = true;
      if (!serve(waiting.front())) {
        if (stalled.empty()) retry_at = monotonic_ns() + kStallRetryMs * 1'000'000;
        stalled.push_back(waiting.front());
      }
      waiting.pop_front();
    }
    handling_.unlock();
    statistics_.stalled_now = stalled.size();
  }
}

// What was faulted on may have been served meanwhile (two threads, or a neighbour's run): then the thread is only woken.
bool Session::serve(const Fault& fault) {
  const auto found = std::find_if(regions_.begin(), regions_.end(),
                                  [&](const auto& region) { return region->contains(fault.address); });
  if (found == regions_.end()) {
    faults_->wake(fault.address, 4096);
    return true;
  }
  Region* region = found->get();
  const uint64_t offset = region->offset_of(fault.address);
  FaultKind kind = FaultKind::kMapping;
  if (region->is_mapped(offset)) {
    faults_->wake(fault.address, 4096);
    return true;
  }
  busy_ = fault.since_ns < served_ns_ + kBusyNs;
  if (!(fault.write ? serve_write(region, offset, &kind) : serve_read(region, offset, &kind))) return false;
  served_ns_ = monotonic_ns();
  statistics_.faults[static_cast<size_t>(kind)].add(served_ns_ - fault.since_ns);
  if (process_mappings_.load(std::memory_order_relaxed) > static_cast<int64_t>(limits_.mapping_budget)) promote();
  return true;
}

bool Session::serve_write(Region* region, uint64_t offset, FaultKind* kind) {
  FaultWork work;
  // What was in use before a snapshot is in use after it. While the guest mostly waits for such blocks they come back whole, in a
  // fault each; once it has time, what it writes here and there takes no more disk space than it must.
  const FaultHint hint = {.ahead = region->writers().ahead(offset), .whole_block = busy_ && region->was_in_use(offset)};
  auto extent = image_->make_writable(offset, hint, &work);
  if (!extent) return fail(region, offset, extent.error());
  const uint64_t end = extent->offset + extent->length;
  if (work.expanded || work.copied || hint.ahead) region->writers().served_to(end);
  if (auto placed = place(region, offset, *extent, work.expanded || work.copied); !placed) {
    report_stall(placed.error());
    return false;
  }
  statistics_.copied_bytes += work.copied_bytes;
  // Its writer is back at work: what it needs next is made meanwhile. Where that fails its fault will say so.
  if (hint.ahead == kLargestRun && !work.copied && end < region->end()) (void)image_->allocate_ahead(end, kLargestRun);
  *kind = work.copied ? FaultKind::kCopyOnWrite : work.expanded ? FaultKind::kExpansion : FaultKind::kMapping;
  return true;
}

// A reader's session maps nothing of the image: its writer, in another process, may let go of a block at any time and use it for
// something else, and after a crash of the host an entry counts only as far as it is durable. Image::read() knows of both.
bool Session::serve_read(Region* region, uint64_t offset, FaultKind* kind) {
  auto extent = writable_ ? image_->held(offset) : Extent{};
  Result<void> outcome;
  if (!extent) {
    outcome = extent.error();
  } else if (extent->length) {
    outcome = place(region, offset, *extent, false);
  } else {
    *kind = FaultKind::kCleanCopy;
    outcome = copy_clean(region, offset, clean_ahead(region, offset));
    if (outcome && busy_ && region->was_in_use(offset)) copy_clean_around(region, offset);
  }
  return outcome || fail(region, offset, outcome.error());
}

void Session::tell_if_base_is_missing(const Error& error) {
  const uint64_t one = 1;
  if (error.code == Code::kBaseMissing && missing_bases_ >= 0) (void)!write(missing_bases_, &one, sizeof one);
}

// What is damaged stays so: whoever touches it is told, instead of waiting. true: nobody waits.
bool Session::fail(Region* region, uint64_t offset, const Error& error) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t low = std::max(offset / sub * sub, region->offset());
  const uint64_t high = std::min(offset / sub * sub + sub, region->end());
  if (error.code != Code::kCorrupt || !faults_->poison(region->at(low), high - low)) {
    report_stall(error);
    return false;
  }
  log_notice(error.message + "; accessing it raises SIGBUS");
  return true;
}

// Maps the run of own bytes, and wakes who waits for it: all of what was just made, in one piece with what lies between and is mapped
// already, or else the part around `offset` that is not mapped yet.
Result<void> Session::place(Region* region, uint64_t offset, const Extent& extent, bool made) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t low = std::max(extent.offset, region->offset());
  const uint64_t high = std::min(extent.offset + extent.length, region->end());
  uint64_t from = made ? low : std::max(low, offset / sub * sub);
  while (from > low && !region->is_mapped(from - 1)) from = std::max(low, (from - 1) / sub * sub);
  uint64_t to = made ? high : std::min(high, offset / sub * sub + sub);
  while (to < high && !region->is_mapped(to)) to = std::min(high, to / sub * sub + sub);

  const uint64_t place = extent.place + (from - extent.offset);
  void* address = region->at(from);
  // Other mappings of the image show these blocks as clean copies yet: they must not any more when this one can be stored to.
  drop_clean_elsewhere(region, from, to);
  const auto try_map = [&] { return map_blocks(address, to - from, region->protection(), place); };
  if (!try_map() && (errno != ENOMEM || !promote() || !try_map()))
    return system_error(errno, image_->info().path + ": cannot map a block of the image into memory");

  // A boundary between mappings is where own and not own meet, or own runs that are no neighbours in the file.
  const bool left = from > region->offset() && region->is_mapped(from - 1);
  const bool right = to < region->end() && region->is_mapped(to);
  const bool joins_left = left && image_->place(from - 1) == place - 1;
  const bool joins_right = right && image_->place(to) == place + (to - from);
  int64_t before = 0;
  bool mapped = left;
  for (uint64_t at = from; at < to; at = at / sub * sub + sub) {
    if (region->is_mapped(at) != mapped) before++;
    mapped = region->is_mapped(at);
  }
  if (right != mapped) before++;
  count_boundaries(region, from, (joins_left ? 0 : 1) + (joins_right ? 0 : 1) - before);
  for (uint64_t at = from; at < to; at = at / sub * sub + sub) {
    if (region->is_clean(at)) {
      region->set_clean(at, false);
      count_clean(-static_cast<int64_t>(sub));
    }
    region->set_mapped(at);
  }
  faults_->wake(address, to - from);
  return {};
}

// The image's own blocks, over whatever is there. A child of fork(2) does not get them: it would store into the image beside its
// parent, also into what has been frozen since.
bool Session::map_blocks(void* address, size_t length, int protection, uint64_t place) {
  return system_mmap(address, length, protection, MAP_SHARED | MAP_FIXED, image_->descriptor(),
                     static_cast<off_t>(place)) != MAP_FAILED &&
         system_madvise(address, length, MADV_DONTFORK) == 0;
}

void Session::count_clean(int64_t bytes) {
  statistics_.clean_bytes += static_cast<uint64_t>(bytes);
  process_clean_ += bytes;
}

bool Session::has_room_for(uint64_t bytes) const {
  return process_clean_.load(std::memory_order_relaxed) + static_cast<int64_t>(bytes) <=
         static_cast<int64_t>(limits_.clean_cache);
}

// Bytes that come with the unit at `offset`, because a reader that goes on will want them: one copy of many pages instead of many faults. As
// far as nothing is there yet, and not at the price of other copies: what was just made might be dropped before its reader is back.
uint64_t Session::clean_ahead(Region* region, uint64_t offset) {
  const uint64_t start = std::min((offset / clean_unit_ + 1) * clean_unit_, region->end());
  const uint64_t end = std::min(start + region->readers().ahead(offset), region->end());
  uint64_t at = start;
  const auto fits = [&] { return has_room_for((at - offset) + clean_unit_); };
  while (at < end && !region->is_mapped(at) && !region->is_clean(at) && fits()) at = std::min(end, at + clean_unit_);
  region->readers().served_to(at);
  return at - start;
}

// The unit at `offset`, and `ahead` bytes behind it.
Result<void> Session::copy_clean(Region* region, uint64_t offset, uint64_t ahead) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t start = offset / clean_unit_ * clean_unit_;
  uint64_t low = std::max(start, region->offset());
  uint64_t high = std::min(start + clean_unit_ + ahead, region->end());
  auto count = image_->read(nullptr, low, buffer_.data(), high - low);
  if (!count && count.error().code == Code::kCorrupt) {
    // What is damaged may be a neighbour.
    low = std::max(low, offset / sub * sub);
    high = std::min(high, offset / sub * sub + sub);
    count = image_->read(nullptr, low, buffer_.data(), high - low);
  }
  if (!count) return count.error();
  // A writer: never of what is the image's own already, for another mapping of it may be written without a fault.
  const auto wanted = [&](uint64_t at) { return !region->is_mapped(at) && (!writable_ || image_->place(at) == 0); };
  const auto next = [&](uint64_t at) { return std::min(high, at / sub * sub + sub); };
  for (uint64_t at = low; at < high;) {
    uint64_t end = at;
    while (end < high && wanted(end)) end = next(end);
    if (end == at) {
      at = next(at);
      continue;
    }
    PCOW_TRY(faults_->copy_protected(region->at(at), buffer_.data() + (at - low), end - at));
    for (; at < end; at = next(at)) {
      if (region->is_clean(at)) continue;
      region->set_clean(at, true);
      count_clean(static_cast<int64_t>(sub));
    }
  }
  // The one that was asked for is the newest.
  for (uint64_t unit = start + clean_unit_; unit < high; unit += clean_unit_) clean_units_.push_back({region, unit});
  clean_units_.push_back({region, start});
  faults_->wake(region->at(low), high - low);
  keep_clean_budget();
  return {};
}

// As long as nobody waits: what was in use before the snapshot near `offset`, so that it needs no faults of its own. Not at the price
// of other copies: the one just made might be dropped before its reader is back, for ever.
void Session::copy_clean_around(Region* region, uint64_t offset) {
  const uint64_t group = offset / (clean_unit_ * kCleanGroup) * (clean_unit_ * kCleanGroup);
  for (uint64_t at = std::max(group, region->offset()); at < std::min(group + clean_unit_ * kCleanGroup, region->end());
       at = (at / clean_unit_ + 1) * clean_unit_) {
    if (!has_room_for(clean_unit_) || faults_->is_awaited()) return;
    if (!region->was_in_use(at) || region->is_mapped(at) || region->is_clean(at)) continue;
    if (!copy_clean(region, at, 0)) return;  // who touches it will be told
  }
}

void Session::drop_clean(Region* region, uint64_t from, uint64_t to) {
  const uint64_t sub = geometry_.sub_block_size();
  for (uint64_t at = from; at < to;) {
    const uint64_t end = std::min(to, at / sub * sub + sub);
    if (region->is_clean(at)) {
      // The pages are write-protected copies: dropping them loses nothing, and the next access faults again.
      system_madvise(region->at(at), end - at, MADV_DONTNEED);
      region->set_clean(at, false);
      count_clean(-static_cast<int64_t>(sub));
      statistics_.clean_dropped += sub;
    }
    at = end;
  }
}

// Another mapping of the image may show clean copies of what becomes the image's own.
void Session::drop_clean_elsewhere(Region* region, uint64_t from, uint64_t to) {
  for (const auto& other : regions_)
    if (other.get() != region) drop_clean(other.get(), std::max(from, other->offset()), std::min(to, other->end()));
}

void Session::keep_clean_budget() {
  // Never the newest unit: the thread that waits for it would fault for ever.
  while (!has_room_for(0) && clean_units_.size() > 1) {
    const CleanUnit oldest = clean_units_.front();
    clean_units_.pop_front();
    drop_clean(oldest.region, std::max(oldest.offset, oldest.region->offset()),
               std::min(oldest.offset + clean_unit_, oldest.region->end()));
  }
}

void Session::count_boundaries(Region* region, uint64_t offset, int64_t change) {
  region->boundaries(offset) += change;
  statistics_.mappings = static_cast<uint64_t>(process_mappings_.fetch_add(change) + change);
}

// Completes the chunk that costs the most mappings, and maps it in one piece (or few).
bool Session::promote() {
  Region* worst = nullptr;
  uint64_t chunk = 0;
  int64_t most = kWorthPromoting;
  for (const auto& region : regions_) {
    int64_t boundaries;
    const uint64_t start = region->most_fragmented(&boundaries);
    if (boundaries <= most) continue;
    most = boundaries;
    worst = region.get();
    chunk = start;
  }
  if (!worst) return false;
  drop_clean_elsewhere(worst, chunk, chunk + geometry_.chunk_size());
  FaultWork work;
  if (auto completed = image_->complete_chunk(chunk, &work); !completed) {
    report_stall(completed.error());
    return false;
  }
  statistics_.copied_bytes += work.copied_bytes;
  if (statistics_.promotions++ == 0)
    log_notice(
        image_->info().path + ": the image is too fragmented for this process's mapping limit (" +
        std::to_string(limits_.mapping_budget) +
        "), so parts of it are copied whole, which takes disk space. As root, \"sysctl vm.max_map_count=1048576\" "
        "raises the limit for processes that are started afterwards");
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t end = std::min(chunk + geometry_.chunk_size(), worst->end());
  int64_t boundaries = 0;
  uint64_t expected = 0;
  for (uint64_t at = std::max(chunk, worst->offset()); at < end;) {
    auto extent = image_->held(at);
    if (!extent || !extent->length) return false;
    const uint64_t to = std::min(end, extent->offset + extent->length);
    const uint64_t place = extent->place + (at - extent->offset);
    // Over what is mapped already too: the same pages of the same file, so that nothing is lost.
    if (!map_blocks(worst->at(at), to - at, worst->protection(), place)) return false;
    if (place != expected) boundaries++;
    expected = place + (to - at);
    for (uint64_t each = at; each < to; each = each / sub * sub + sub) {
      if (worst->is_clean(each)) {
        worst->set_clean(each, false);
        count_clean(-static_cast<int64_t>(sub));
      }
      worst->set_mapped(each);
    }
    faults_->wake(worst->at(at), to - at);
    at = to;
  }
  count_boundaries(worst, chunk, boundaries + 1 - most);
  log_detail(image_->info().path + ": completed the chunk at " + std::to_string(chunk) + ", which had " +
             std::to_string(most) + " boundaries");
  return true;
}

void Session::report_stall(const Error& error) {
  if (closed_) return;  // the process is about to end
  statistics_.stalls++;
  tell_if_base_is_missing(error);
  const uint64_t now = monotonic_ns();
  if (stall_reported_ns_ && now - stall_reported_ns_ < kStallReportNs) return;
  stall_reported_ns_ = now;
  log_notice(error.message + "; the guest waits, and goes on when that is mended");
}

void Session::close() {
  closed_ = true;
  if (auto closed = image_->close(); !closed) log_notice(closed.error().message);
}

}  // namespace pcow
