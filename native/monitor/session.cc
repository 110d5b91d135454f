#include "session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <csignal>
#include <thread>
#include <utility>

#include "inside.h"
#include "log.h"
#include "system_calls.h"

namespace pcow {
namespace {

// Mappings of all sessions of this process: the kernel's limit is one for all (vm.max_map_count).
std::atomic<int64_t> process_mappings{0};

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
  // The application's signals are none of the fault thread's business: a handler might touch guest memory.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  session->fault_thread_ = std::thread([serving = session.get()] { serving->serve_faults(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return session;
}

Session::~Session() {
  ended_ = true;
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
  if (fault_thread_.joinable()) fault_thread_.join();
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
  const Inside inside;
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
  if (process_mappings.load(std::memory_order_relaxed) > static_cast<int64_t>(limits_.mapping_budget)) promote();
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
  // Before the writer goes on: it may look there next.
  drop_clean_elsewhere(region, extent->offset, end);
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

bool Session::serve_read(Region* region, uint64_t offset, FaultKind* kind) {
  auto extent = image_->held(offset);
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

// What is damaged stays so: whoever touches it is told, instead of waiting. true: nobody waits.
bool Session::fail(Region* region, uint64_t offset, const Error& error) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t low = std::max(offset / sub * sub, region->offset());
  const uint64_t high = std::min(offset / sub * sub + sub, region->end());
  if (error.code != Code::kCorrupt || !faults_->poison(region->at(low), high - low)) {
    report_stall(error);
    return false;
  }
  log_notice(error.message + "; who touches it gets SIGBUS");
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
  const auto try_map = [&] {
    return system_mmap(address, to - from, region->protection(), MAP_SHARED | MAP_FIXED, image_->descriptor(),
                       static_cast<off_t>(place)) != MAP_FAILED;
  };
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
      statistics_.clean_bytes -= sub;
    }
    region->set_mapped(at);
  }
  faults_->wake(address, to - from);
  return {};
}

// Bytes that come with the unit at `offset`, because a reader that goes on will want them: one copy of many pages instead of many faults. As
// far as nothing is there yet, and not at the price of other copies: what was just made might be dropped before its reader is back.
uint64_t Session::clean_ahead(Region* region, uint64_t offset) {
  const uint64_t start = std::min((offset / clean_unit_ + 1) * clean_unit_, region->end());
  const uint64_t end = std::min(start + region->readers().ahead(offset), region->end());
  uint64_t at = start;
  const auto fits = [&] { return statistics_.clean_bytes + (at - offset) + clean_unit_ <= limits_.clean_cache; };
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
  // Never of what is the image's own already: another mapping of it may be written without a fault.
  const auto wanted = [&](uint64_t at) { return !region->is_mapped(at) && image_->place(at) == 0; };
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
      statistics_.clean_bytes += sub;
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
    if (statistics_.clean_bytes + clean_unit_ > limits_.clean_cache || faults_->is_awaited()) return;
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
      statistics_.clean_bytes -= sub;
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
  while (statistics_.clean_bytes > limits_.clean_cache && clean_units_.size() > 1) {
    const CleanUnit oldest = clean_units_.front();
    clean_units_.pop_front();
    drop_clean(oldest.region, std::max(oldest.offset, oldest.region->offset()),
               std::min(oldest.offset + clean_unit_, oldest.region->end()));
  }
}

void Session::count_boundaries(Region* region, uint64_t offset, int64_t change) {
  region->boundaries(offset) += change;
  statistics_.mappings = static_cast<uint64_t>(process_mappings.fetch_add(change) + change);
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
    log_notice(image_->info().path + ": what has been written lies in more pieces than this process may map (" +
               std::to_string(limits_.mapping_budget) +
               "), so parts of the image are copied whole, which takes disk space; sysctl " +
               "vm.max_map_count=1048576 allows more of them, from the next start on");
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
    if (system_mmap(worst->at(at), to - at, worst->protection(), MAP_SHARED | MAP_FIXED, image_->descriptor(),
                    static_cast<off_t>(place)) == MAP_FAILED)
      return false;
    if (place != expected) boundaries++;
    expected = place + (to - at);
    for (uint64_t each = at; each < to; each = each / sub * sub + sub) {
      if (worst->is_clean(each)) {
        worst->set_clean(each, false);
        statistics_.clean_bytes -= sub;
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
  const uint64_t now = monotonic_ns();
  if (stall_reported_ns_ && now - stall_reported_ns_ < kStallReportNs) return;
  stall_reported_ns_ = now;
  log_notice(error.message + "; the guest waits, and goes on when that is mended");
}

// Puts a fresh reservation over the range in one step: from then on every access to it faults.
Result<void> Session::replace(Region* region, uint64_t from, uint64_t to) {
  auto fresh = faults_->reserve(to - from, region->protection());
  if (!fresh) return fresh.error();
  if (system_mremap(*fresh, to - from, to - from, MREMAP_MAYMOVE | MREMAP_FIXED, region->at(from)) != MAP_FAILED)
    return {};
  const int err = errno;
  system_munmap(*fresh, to - from);
  return system_error(err, "cannot take the image's mapping down");
}

Result<void*> Session::map(void* address, bool fixed, size_t length, int protection, uint64_t offset) {
  auto reserved = faults_->reserve(length, protection);
  if (!reserved) return reserved.error();
  const Handling held(this);
  char* at = static_cast<char*>(*reserved);
  if (fixed) {
    if (system_mremap(at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address) == MAP_FAILED) {
      const int err = errno;
      system_munmap(at, length);
      return system_error(err, "cannot map the image at the address asked for");
    }
    at = static_cast<char*>(address);
  }
  regions_.push_back(std::make_unique<Region>(geometry_, at, length, offset, protection));
  return static_cast<void*>(at);
}

// What stays of a region whose books have begun anew.
void Session::keep_part(std::vector<std::unique_ptr<Region>>* kept, const Region& whole, char* from, char* to,
                        int protection) {
  from = std::max(from, whole.address());
  to = std::min(to, whole.address() + whole.length());
  if (from < to)
    kept->push_back(
        std::make_unique<Region>(geometry_, from, static_cast<size_t>(to - from), whole.offset_of(from), protection));
}

void Session::drop_books(Region* region) { drop_books(region, 0, region->end()); }

// Nothing of whole chunks of the region is mapped or copied any more.
void Session::drop_books(Region* region, uint64_t from, uint64_t to) {
  std::erase_if(clean_units_, [&](const CleanUnit& unit) {
    return unit.region == region && unit.offset >= from && unit.offset < to;
  });
  region->take_down(from, to, [&](uint64_t clean, int64_t boundaries) {
    statistics_.clean_bytes -= clean * geometry_.sub_block_size();
    process_mappings -= boundaries;
  });
}

Result<void> Session::protect(void* address, size_t length, int protection) {
  if ((protection & PROT_WRITE) && !writable_)
    return Error(Code::kPermission, image_->info().path + " is mapped for reading only in this process");
  const Handling held(this);
  char* from = static_cast<char*>(address);
  char* to = from + length;
  std::vector<std::unique_ptr<Region>> kept;
  Result<void> outcome;
  for (auto& region : regions_) {
    char* end = region->address() + region->length();
    if (!outcome || from >= end || region->address() >= to) {
      kept.push_back(std::move(region));
      continue;
    }
    // Its blocks come back by cheap faults, with the protection of their part.
    outcome = replace(region.get(), region->offset(), region->end());
    if (!outcome) {
      kept.push_back(std::move(region));
      continue;
    }
    drop_books(region.get());
    keep_part(&kept, *region, region->address(), from, region->protection());
    keep_part(&kept, *region, from, to, protection);
    keep_part(&kept, *region, to, end, region->protection());
    char* first = std::max(from, region->address());
    if (system_mprotect(first, static_cast<size_t>(std::min(to, end) - first), protection) < 0)
      outcome = system_error(errno, image_->info().path + ": cannot change the protection of its mapping");
  }
  regions_ = std::move(kept);
  return outcome;
}

bool Session::overlaps(const void* address, size_t length) {
  const Handling held(this);
  const auto* from = static_cast<const char*>(address);
  return std::any_of(regions_.begin(), regions_.end(), [&](const auto& region) {
    return from < region->address() + region->length() && region->address() < from + length;
  });
}

bool Session::is_idle() {
  const Handling held(this);
  return regions_.empty();
}

bool Session::find(const void* address, size_t length, uint64_t* offset, uint64_t* found_length) {
  const Handling held(this);
  for (const auto& region : regions_) {
    if (!region->contains(address)) continue;
    *offset = region->offset_of(address);
    *found_length = std::min<uint64_t>(length, region->end() - *offset);
    return true;
  }
  return false;
}

bool Session::unmap(void* address, size_t length) {
  const Handling held(this);
  char* from = static_cast<char*>(address);
  char* to = from + length;
  std::vector<std::unique_ptr<Region>> kept;
  for (auto& region : regions_) {
    char* start = region->address();
    char* end = start + region->length();
    if (from >= end || start >= to) {
      kept.push_back(std::move(region));
      continue;
    }
    // What stays of a region starts anew, so that the books are right: everything of it is taken down.
    if (from > start || end > to) (void)replace(region.get(), region->offset(), region->end());
    drop_books(region.get());
    keep_part(&kept, *region, start, from, region->protection());
    keep_part(&kept, *region, to, end, region->protection());
  }
  regions_ = std::move(kept);
  system_munmap(address, length);
  return regions_.empty();
}

Result<void> Session::sync() {
  statistics_.syncs++;
  return image_->sync();
}

Result<void> Session::discard(uint64_t offset, uint64_t length) {
  const Handling held(this);
  const uint64_t chunk = geometry_.chunk_size();
  const uint64_t first = offset / chunk * chunk;
  const uint64_t last = (offset + length + chunk - 1) / chunk * chunk;
  for (const auto& region : regions_) {
    const uint64_t from = std::max(first, region->offset());
    const uint64_t to = std::min(last, region->end());
    if (from >= to) continue;
    // Nobody may write through an old mapping of a block that the discard lets go: take its chunk down before.
    PCOW_TRY(replace(region.get(), from, to));
    drop_books(region.get(), first, last);
  }
  return image_->discard(offset, length);
}

Result<void> Session::prepare(const std::string& name, bool automatic) {
  if (pending_) return Error(Code::kBusy, image_->info().path + ": another snapshot is under way");
  auto pending = PendingSnapshot::prepare(image_.get(), name, automatic);
  if (!pending) return pending.error();
  pending_ = std::move(*pending);
  step_ = Step::kPrepared;
  return {};
}

Result<void> Session::cut() {
  if (step_ != Step::kPrepared) return Error(Code::kInvalid, "no snapshot has been prepared");
  // Most of what is mapped is taken down piece by piece, while the old layer still takes writes: what the guest touches
  // again comes back by a cheap fault. The cut itself then unmaps only what was touched since. Each chunk once, however
  // fast the guest brings them back.
  std::vector<std::pair<size_t, uint64_t>> pieces;  // number of the region, start of the chunk
  {
    const Handling held(this);
    for (const auto& region : regions_) region->forget_use();
    for (size_t i = 0; i < regions_.size(); i++)
      for (const uint64_t start : regions_[i]->chunk_starts()) pieces.emplace_back(i, start);
  }
  for (const auto& [number, start] : pieces) {
    const Handling held(this);
    if (number >= regions_.size()) break;  // unmapped meanwhile
    Region* region = regions_[number].get();
    const uint64_t from = std::max(start, region->offset());
    const uint64_t to = std::min(start + geometry_.chunk_size(), region->end());
    if (from >= to) continue;
    PCOW_TRY(replace(region, from, to));
    region->remember_use(start);
    drop_books(region, start, start + geometry_.chunk_size());
  }
  handling_.lock();
  step_ = Step::kCut;
  cut_since_ns_ = monotonic_ns();
  for (const auto& region : regions_) {
    if (auto replaced = replace(region.get(), region->offset(), region->end()); !replaced) {
      abort();
      return replaced;
    }
    for (const uint64_t start : region->chunk_starts()) region->remember_use(start);
    drop_books(region.get());
  }
  return {};
}

Result<void> Session::commit() {
  if (step_ != Step::kCut) return Error(Code::kInvalid, "nothing has been cut");
  pending_->close_gate();
  auto outcome = pending_->commit();
  step_ = outcome ? Step::kCommitted : Step::kNone;
  statistics_.last_freeze_ns = monotonic_ns() - cut_since_ns_;
  release_handling();
  if (!outcome) pending_.reset();
  return outcome;
}

Result<void> Session::finish() {
  if (step_ != Step::kCommitted) return Error(Code::kInvalid, "nothing has been committed");
  auto outcome = pending_->finish();
  step_ = Step::kNone;
  pending_.reset();
  statistics_.snapshots++;
  return outcome;
}

void Session::abort() {
  if (std::exchange(step_, Step::kNone) == Step::kCut) release_handling();
  pending_.reset();
}

Result<void> Session::remove(const std::string& name) {
  // The snapshot under way keeps every other change of structure waiting, and it is this thread that would finish it.
  if (pending_) return Error(Code::kBusy, image_->info().path + ": a snapshot is under way");
  return image_->remove(name, nullptr);
}

void Session::close() {
  closed_ = true;
  if (auto closed = image_->close(); !closed) log_notice(closed.error().message);
}

void Session::forget_in_child() {
  for (const auto& region : regions_)
    system_mmap(region->address(), region->length(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                -1, 0);
  // So that a child that outlives the parent does not keep the image locked.
  ::close(image_->descriptor());
}

}  // namespace pcow
