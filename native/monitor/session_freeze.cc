// The steps of a live snapshot (docs/monitor.md, "A freeze, step by step"). All run on the control
// thread.
#include <algorithm>
#include <utility>

#include "monitor/direct_reads.h"
#include "monitor/session.h"

namespace pcow {
namespace {

// How long a cut waits for the reads in progress. The mount waits longer for the cut.
constexpr int kDirectReadMs = 10'000;

}  // namespace

Result<void> Session::prepare(const std::string& name, bool automatic) {
  if (pending_)
    return Error(Code::kBusy, image_->info().path + ": another snapshot is in progress");
  auto pending = PendingSnapshot::prepare(image_.get(), name, automatic);
  if (!pending) return pending.error();
  pending_ = std::move(*pending);
  step_ = Step::kPrepared;
  return {};
}

Result<void> Session::cut() {
  if (step_ != Step::kPrepared) return Error(Code::kInvalid, "no snapshot has been prepared");
  // Most mappings are taken down chunk by chunk, while the old layer still takes writes. What the
  // guest accesses again comes back by a cheap fault. The cut itself then unmaps only what was
  // accessed since. Each chunk is taken down once, however fast the guest brings chunks back.
  std::vector<std::pair<size_t, uint64_t>> pieces;  // number of the region, start of the chunk
  {
    const Handling held(this);
    for (const auto& region : regions_) region->forget_use();
    for (size_t i = 0; i < regions_.size(); i++)
      for (const uint64_t start : regions_[i]->chunk_starts()) pieces.emplace_back(i, start);
  }
  for (const auto& [number, start] : pieces) {
    const Handling held(this);
    if (number >= regions_.size()) break;  // unmapped in the meantime
    Region* region = regions_[number].get();
    const uint64_t from = std::max(start, region->offset());
    const uint64_t to = std::min(start + geometry_.chunk_size(), region->end());
    if (from >= to) continue;
    PCOW_TRY(replace(region, from, to));
    region->remember_use(start);
    forget_chunks(region, start, start + geometry_.chunk_size());
  }
  if (!direct_reads::hold_back(kDirectReadMs))
    return Error(Code::kBusy,
                 image_->info().path +
                     ": a read(2) with O_DIRECT into the image's memory has been in progress for " +
                     std::to_string(kDirectReadMs / 1000) +
                     " seconds and would change the snapshot when it ends: try again when its disk "
                     "responds");
  handling_.lock();
  step_ = Step::kCut;
  cut_since_ns_ = monotonic_ns();
  for (const auto& region : regions_) {
    if (auto replaced = replace(region.get(), region->offset(), region->end()); !replaced) {
      abort();
      return replaced;
    }
    for (const uint64_t start : region->chunk_starts()) region->remember_use(start);
    forget_chunks(region.get());
  }
  return {};
}

Result<void> Session::commit() {
  if (step_ != Step::kCut) return Error(Code::kInvalid, "the snapshot has not been cut");
  pending_->close_gate();
  auto outcome = pending_->commit();
  step_ = outcome ? Step::kCommitted : Step::kNone;
  statistics_.last_freeze_ns = monotonic_ns() - cut_since_ns_;
  release_handling();
  direct_reads::go_on();
  if (!outcome) pending_.reset();
  return outcome;
}

Result<void> Session::finish() {
  if (step_ != Step::kCommitted)
    return Error(Code::kInvalid, "the snapshot has not been committed");
  auto outcome = pending_->finish();
  step_ = Step::kNone;
  pending_.reset();
  statistics_.snapshots++;
  return outcome;
}

void Session::abort() {
  if (step_.exchange(Step::kNone) == Step::kCut) {
    release_handling();
    direct_reads::go_on();
  }
  pending_.reset();
}

Result<void> Session::remove(const std::string& name) {
  // The pending snapshot blocks every other change of the structure, and only this thread can
  // finish it.
  if (pending_) return Error(Code::kBusy, image_->info().path + ": a snapshot is in progress");
  return image_->remove(name, nullptr);
}

Result<void> Session::rename_snapshot(const std::string& names) {
  if (pending_) return Error(Code::kBusy, image_->info().path + ": a snapshot is in progress");
  const size_t space = names.find(' ');
  if (space == std::string::npos) return Error(Code::kInvalid, "a rename needs two names");
  return image_->rename_snapshot(names.substr(0, space), names.substr(space + 1));
}

}  // namespace pcow
