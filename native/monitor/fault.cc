#include "monitor/fault.h"

#include <algorithm>

#include "monitor/log.h"

namespace pcow {
namespace {

constexpr uint64_t kBusyNs = 250'000;  // several times as long as serving a fault takes
// What is shown at once to a sequential reader.
constexpr uint64_t kLargestShare = uint64_t{4} << 20;
constexpr uint64_t kSmallestUnit = 65536;

}  // namespace

FaultServer::FaultServer(Image* image, FaultDescriptor* faults, const RegionGeometry& geometry,
                         const Regions& regions, BaseRanges* base, CleanCache* clean,
                         Mapper* mapper, SharedBase* shared, SharingQueue* sharing, Stalls* stalls,
                         Statistics* statistics, bool writable)
    : image_(image),
      faults_(faults),
      geometry_(geometry),
      regions_(regions),
      base_(base),
      clean_(clean),
      mapper_(mapper),
      shared_(shared),
      sharing_(sharing),
      stalls_(stalls),
      statistics_(statistics),
      writable_(writable) {}

FaultServer::Outcome FaultServer::serve(const Fault& fault) {
  Region* region = region_at(fault.address);
  // The fault may have been served by now (for another thread, or with a neighbour's run), or the
  // region unmapped: only wake the thread.
  const uint64_t offset = region ? region->offset_of(fault.address) : 0;
  if (region && fault.alone && region->is_shared(offset))
    statistics_->faults[static_cast<size_t>(FaultKind::kSharing)].add(monotonic_ns() -
                                                                      fault.since_ns);
  if (!region || region->is_mapped(offset) || (!fault.write && region->is_shared(offset))) {
    faults_->wake(fault.address, 4096);
    return Outcome::kServed;
  }
  busy_ = fault.since_ns < served_ns_ + kBusyNs;
  FaultKind kind = FaultKind::kMapping;
  const auto served =
      fault.write ? serve_write(region, offset, &kind) : serve_read(region, offset, fault, &kind);
  if (!served) {
    const Outcome outcome = fail(region, offset, served.error());
    if (outcome != Outcome::kServed) return outcome;
  }
  served_ns_ = monotonic_ns();
  if (kind == FaultKind::kSharing) return Outcome::kServed;
  statistics_->faults[static_cast<size_t>(kind)].add(served_ns_ - fault.since_ns);
  mapper_->keep_budget();
  return Outcome::kServed;
}

Region* FaultServer::region_at(const char* address) const {
  const auto found = std::find_if(regions_.begin(), regions_.end(),
                                  [&](const auto& region) { return region->contains(address); });
  return found == regions_.end() ? nullptr : found->get();
}

Result<void> FaultServer::serve_write(Region* region, uint64_t offset, FaultKind* kind) {
  FaultWork work;
  // Pages that were mapped before a snapshot are likely to be used again. While the guest mostly
  // waits for faults, such blocks are copied whole, in one fault each. Later, a scattered write
  // takes no more disk space than it needs.
  const FaultHint hint = {.ahead = region->writers().ahead(offset),
                          .whole_block = busy_ && region->was_in_use(offset)};
  auto extent = image_->make_writable(offset, hint, &work);
  if (!extent) return extent.error();
  const bool made = work.expanded || work.copied;
  const uint64_t end = extent->offset + extent->length;
  if (made || hint.ahead) region->writers().served_to(end);
  PCOW_TRY(mapper_->map_extent(region, offset, *extent, made));
  statistics_->copied_bytes += work.copied_bytes;
  // The writer has been woken: prepare what it needs next. If that fails, the next fault will
  // report it.
  if (hint.ahead == kLargestRun && !work.copied && end < region->end())
    (void)image_->allocate_ahead(end, kLargestRun);
  *kind = work.copied     ? FaultKind::kCopyOnWrite
          : work.expanded ? FaultKind::kExpansion
                          : FaultKind::kMapping;
  return {};
}

// A reader's session maps nothing of the image directly. The image's writer, in another process,
// may release a block at any time and use it for other data; and after a host crash only the
// durable part of an entry counts. Image::read() handles both.
Result<void> FaultServer::serve_read(Region* region, uint64_t offset, const Fault& fault,
                                     FaultKind* kind) {
  auto extent = writable_ ? image_->held(offset) : Extent{};
  if (!extent) return extent.error();
  if (extent->length) return mapper_->map_extent(region, offset, *extent, false);
  if (fault.alone) {
    region->readers().take_back(offset, fault.served_to);
  } else if (share(region, offset, fault)) {
    *kind = FaultKind::kSharing;
    return {};
  }
  *kind = FaultKind::kCleanCopy;
  // No copies of what can be shared.
  PCOW_TRY(clean_->serve(
      region, offset, shared_->missing_to(offset, offset + Region::kLargestRead + kSmallestUnit)));
  want_shared(region, offset);
  if (busy_ && region->was_in_use(offset)) clean_->serve_around(region, offset);
  return {};
}

// Returns whether the sharing thread serves the fault, or tries to.
bool FaultServer::share(Region* region, uint64_t offset, const Fault& fault) {
  const uint64_t chunk_end = (offset / geometry_.chunk_size() + 1) * geometry_.chunk_size();
  const uint64_t slice = offset / segment::kSliceSize * segment::kSliceSize;
  const uint64_t limit = std::min(chunk_end, region->end());
  uint64_t end = shared_->filled_to(slice, std::min(limit, slice + kLargestShare));
  const bool coming = end <= offset;
  if (coming && !shared_->is_coming(offset)) return false;
  base_->look_again_for_reader(offset, offset + 1);
  if (!mapper_->has_room_for_shared() || !base_->reads_as_base(offset)) return false;
  if (coming) end = std::min(limit, slice + segment::kSliceSize);
  if (const uint64_t ahead = region->readers().ahead(offset))
    shared_->want_ahead(end, ahead);
  else
    end = std::min(end, slice + segment::kSliceSize);
  region->readers().served_to(end);
  Fault given = fault;
  given.served_to = end;
  sharing_->add({std::max(slice, region->offset()), end, given, coming});
  return true;
}

// Copies have been made, from `offset` on. The mount is asked for the slice when a second part of
// it is read: a reader that jumps about would make it read much more than that needs. When the
// reader goes on, the mount is asked for what comes later, so that it does not copy what the reader
// copies at the same time. The sweep asks for the rest (session_sharing.cc).
void FaultServer::want_shared(Region* region, uint64_t offset) {
  if (!shared_->is_offered() || !base_->reads_as_base(offset)) return;
  const uint64_t slice = offset / segment::kSliceSize * segment::kSliceSize;
  if (const uint64_t ahead = region->readers().ahead()) {
    shared_->want_ahead(offset + ahead, ahead);
    return;
  }
  const uint64_t unit = std::max(geometry_.sub_block_size(), kSmallestUnit);
  const uint64_t end = std::min(slice + segment::kSliceSize, region->end());
  uint64_t parts = 0;
  for (uint64_t at = std::max(slice, region->offset()); at < end; at = (at / unit + 1) * unit)
    if (region->is_clean(at)) parts++;
  (void)shared_->want(offset, parts > 1 ? offset + 1 : offset);
}

// Damage does not go away: accessing it raises SIGBUS, instead of waiting forever. Then no thread
// waits for the page any more.
FaultServer::Outcome FaultServer::fail(Region* region, uint64_t offset, const Error& error) {
  const uint64_t sub = geometry_.sub_block_size();
  const uint64_t low = std::max(offset / sub * sub, region->offset());
  const uint64_t high = std::min(offset / sub * sub + sub, region->end());
  if (error.code != Code::kCorrupt || !faults_->poison(region->at(low), high - low)) {
    stalls_->report(error);
    return error.remote ? Outcome::kFetching : Outcome::kStalled;
  }
  log_notice(error.message + "; accessing it raises SIGBUS");
  return Outcome::kServed;
}

}  // namespace pcow
