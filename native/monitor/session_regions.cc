// The mappings of a session: making, protecting and removing them. A region that is taken down
// whole comes back by cheap faults.
#include <algorithm>

#include "attach/system_calls.h"
#include "monitor/session.h"

namespace pcow {

// Puts a reservation at `address`, over whatever is mapped there, in one system call.
Result<void> Session::reserve_at(void* address, size_t length, int protection) const {
  auto reserved = faults_->reserve(length, protection);
  if (!reserved) return reserved.error();
  if (system_mremap(*reserved, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address) !=
      MAP_FAILED)
    return {};
  const int err = errno;
  system_munmap(*reserved, length);
  return system_error(err,
                      image_->info().path + ": cannot move a mapping of the image to its address");
}

// Puts a new reservation over the range: from then on every access to it faults.
Result<void> Session::replace(Region* region, uint64_t from, uint64_t to) const {
  return reserve_at(region->at(from), to - from, region->protection());
}

Result<void*> Session::map(size_t length, int protection, uint64_t offset) {
  auto reserved = faults_->reserve(length, protection);
  if (!reserved) return reserved.error();
  const Handling held(this);
  add_region(static_cast<char*>(*reserved), length, offset, protection);
  return *reserved;
}

void Session::add_region(char* address, size_t length, uint64_t offset, int protection) {
  regions_.push_back(std::make_unique<Region>(geometry_, address, length, offset, protection));
}

// Keeps a part of a region that has been taken down.
void Session::keep_part(Regions* kept, const Region& whole, char* from, char* to, int protection) {
  from = std::max(from, whole.address());
  to = std::min(to, whole.address() + whole.length());
  if (from < to)
    kept->push_back(std::make_unique<Region>(geometry_, from, static_cast<size_t>(to - from),
                                             whole.offset_of(from), protection));
}

void Session::forget_chunks(Region* region) { forget_chunks(region, 0, region->end()); }

// Forgets the chunks of the region that overlap [from, to): their pages are no longer mapped or
// copied.
void Session::forget_chunks(Region* region, uint64_t from, uint64_t to) {
  clean_.forget_units(region, from, to);
  const uint64_t sub = geometry_.sub_block_size();
  const auto visit = [&](uint64_t mapped, uint64_t clean, uint64_t shared, int64_t boundaries) {
    clean_.forget_sub_blocks(clean);
    statistics_.own_bytes -= mapped * sub;
    statistics_.shared_bytes -= shared * sub;
    mapper_.forget_boundaries(boundaries);
  };
  region->take_down(from, to, visit);
}

Result<void> Session::check_protection(int protection) const {
  if ((protection & PROT_WRITE) && !writable_)
    return Error(Code::kPermission, image_->info().path + " is mapped read-only in this process");
  return {};
}

Result<void> Session::protect(void* address, size_t length, int protection) {
  PCOW_TRY(check_protection(protection));
  const Handling held(this);
  char* from = static_cast<char*>(address);
  char* to = from + length;
  Regions kept;
  Result<void> outcome;
  for (auto& region : regions_) {
    char* end = region->address() + region->length();
    if (!outcome || from >= end || region->address() >= to) {
      kept.push_back(std::move(region));
      continue;
    }
    // The region's blocks come back by cheap faults, with the protection of their part.
    outcome = replace(region.get(), region->offset(), region->end());
    if (!outcome) {
      kept.push_back(std::move(region));
      continue;
    }
    forget_chunks(region.get());
    keep_part(&kept, *region, region->address(), from, region->protection());
    keep_part(&kept, *region, from, to, protection);
    keep_part(&kept, *region, to, end, region->protection());
    char* first = std::max(from, region->address());
    if (system_mprotect(first, static_cast<size_t>(std::min(to, end) - first), protection) < 0)
      outcome = system_error(
          errno, image_->info().path + ": cannot change the protection of a mapping of the image");
  }
  regions_ = std::move(kept);
  return outcome;
}

bool Session::overlaps(const void* address, size_t length) {
  return !parts(address, length).empty();
}

bool Session::is_idle() {
  const Handling held(this);
  return regions_.empty();
}

std::vector<Session::Part> Session::parts(const void* address, size_t length) {
  const Handling held(this);
  const auto* from = static_cast<const char*>(address);
  std::vector<Part> found;
  for (const auto& region : regions_) {
    char* const start = region->address() + std::max<ptrdiff_t>(from - region->address(), 0);
    char* const end =
        region->address() + std::min<ptrdiff_t>(from + length - region->address(),
                                                static_cast<ptrdiff_t>(region->length()));
    if (start < end)
      found.push_back({start, static_cast<size_t>(end - start), region->offset_of(start),
                       region->protection()});
  }
  return found;
}

std::vector<Session::Part> Session::all_parts() {
  const Handling held(this);
  std::vector<Part> found;
  for (const auto& region : regions_)
    found.push_back({region->address(), region->length(), region->offset(), region->protection()});
  return found;
}

Result<void> Session::prepare_removal(const char* from, const char* to) {
  for (const auto& region : regions_) {
    const char* start = region->address();
    const char* end = start + region->length();
    if (from >= end || start >= to || (from <= start && end <= to)) continue;
    // The remaining parts begin as missing, so that the session's records are right.
    PCOW_TRY(replace(region.get(), region->offset(), region->end()));
    forget_chunks(region.get());
  }
  return {};
}

void Session::forget_removed(char* from, char* to) {
  Regions kept;
  for (auto& region : regions_) {
    char* start = region->address();
    char* end = start + region->length();
    if (from >= end || start >= to) {
      kept.push_back(std::move(region));
      continue;
    }
    forget_chunks(region.get());
    keep_part(&kept, *region, start, from, region->protection());
    keep_part(&kept, *region, to, end, region->protection());
  }
  regions_ = std::move(kept);
}

Result<void> Session::unmap(void* address, size_t length) {
  const Handling held(this);
  char* from = static_cast<char*>(address);
  PCOW_TRY(prepare_removal(from, from + length));
  if (system_munmap(address, length) < 0) return system_error(errno, "cannot unmap the image");
  forget_removed(from, from + length);
  return {};
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
    // Nothing may write through an old mapping of a block that the discard releases: take its chunk
    // down first.
    PCOW_TRY(replace(region.get(), from, to));
    forget_chunks(region.get(), first, last);
  }
  auto discarded = image_->discard(offset, length);
  base_.look_again(first, last);
  if (!discarded) stalls_.tell_if_base_is_missing(discarded.error());
  return discarded;
}

}  // namespace pcow
