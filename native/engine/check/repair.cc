// A repair does not guess. What has one possible meaning is corrected. What has none is removed,
// and kept beside the image. If two entries claim a block, each gets a copy. If two meanings are
// possible, what is read stays as it was. All data that is or may be lost is in the report
// (losses.h). The order:
//   1. What cannot be placed is written to the lost-and-found, durably.
//   2. Copies and a mended layer directory are written behind the end of the file; a file that was
//      cut short is lengthened; sync.
//   3. The entries are stored; sync.
//   4. Both superblock slots are written again, one after the other, each with a sync. They are not
//      clean: free space is punched when the image is next opened for writing.
// After a crash in between the image is still damaged, or mended; another repair continues.
#include "engine/check/repair.h"

#include <algorithm>

#include "engine/check/inspection.h"
#include "engine/check/losses.h"
#include "engine/check/lost_and_found.h"
#include "engine/image/page_cache.h"

namespace pcow {
namespace {

class Repair {
 public:
  explicit Repair(const Inspection& found)
      : found_(found), file_(found.file), lost_(found.file->path()) {}

  Result<void> run() {
    auto size = file_->size();
    if (!size) return size.error();
    end_ = found_.geometry().blocks_for(std::max(*size, found_.wanted_size));
    look_at_tables();
    PCOW_TRY(look_at_entries());
    PCOW_TRY(keep_what_nothing_names());
    PCOW_TRY(lost_.sync());
    return apply();
  }
  std::string lost_path() const { return lost_.path(); }
  // Only after run() has stored the entries.
  Result<std::vector<Loss>> losses() const {
    return losses_.of_views(*file_, found_.geometry(), *found_.directory);
  }

 private:
  struct Store {
    uint64_t file_offset;  // in the file, bytes
    Entry entry;
    uint32_t copy_of = 0;  // copy the content of this block to the entry's own block first
  };

  uint64_t file_offset_of(uint64_t block) const { return block << found_.geometry().block_shift(); }

  Result<void> keep_what_nothing_names() {
    if (!found_.damaged_directory.empty()) {
      LostPiece piece;
      piece.why = "the layer directory, which is damaged";
      piece.file_offset = found_.damaged_directory_offset;
      PCOW_TRY(lost_.keep(piece, reinterpret_cast<const char*>(found_.damaged_directory.data()),
                          found_.damaged_directory.size()));
    }
    return found_.for_each_stray(
        [&](uint64_t block, const std::vector<char>& bytes) -> Result<void> {
          if (claimed_.contains(static_cast<uint32_t>(block))) return {};
          LostPiece piece;
          piece.why = "no entry refers to this block";
          piece.file_offset = file_offset_of(block);
          return lost_.keep(piece, bytes.data(), bytes.size());
        });
  }

  Result<void> keep(const Layer& layer, uint64_t block, uint32_t index, const std::string& why) {
    std::vector<char> bytes(found_.geometry().block_size());
    auto length = file_->read(file_offset_of(index), bytes.data(), bytes.size());
    if (!length) return length.error();
    if (*length == 0) return {};  // behind the end of the file
    LostPiece piece;
    piece.why = why;
    piece.file_offset = file_offset_of(index);
    piece.layer = layer.id;
    piece.snapshot = layer.name;
    piece.offset = file_offset_of(block);
    return lost_.keep(piece, bytes.data(), *length);
  }

  // From now on entries that were cut off read as empty, and so does what a newer layer directory
  // recorded of the active layer.
  void look_at_tables() {
    for (const Layer& layer : found_.directory->layers) {
      const uint64_t entries = found_.geometry().blocks_for(layer.size);
      if (layer.table_offset + entries * 8 <= found_.file_size()) continue;
      const uint64_t there = found_.file_size() - std::min(found_.file_size(), layer.table_offset);
      losses_.add_doubtful_from(layer.id, there / 8);
    }
    if (found_.older_directory) losses_.add_doubtful_from(found_.directory->active, 0);
  }

  Result<void> look_at_entries() {
    for (const Layer& layer : found_.directory->layers) {
      const auto look = [&](uint64_t block, uint64_t word) -> Result<void> {
        const EntryFault fault = found_.fault_of(word);
        return fault == EntryFault::kNone ? Result<void>{}
                                          : look_at_entry(layer, block, word, fault);
      };
      PCOW_TRY(found_.for_each_entry(layer, look, [](uint64_t, const Error&) {}));
    }
    return {};
  }

  Result<void> look_at_entry(const Layer& layer, uint64_t block, uint64_t word, EntryFault fault) {
    const uint16_t full = found_.geometry().full_mask();
    Entry entry = Entry::unpack(word);
    const uint32_t index = entry.index;
    // Either the durable bit is wrong, or the written bit is missing. Nothing tells which, so what
    // is read stays.
    const auto stray = static_cast<uint16_t>(entry.durable & ~entry.written & full);
    losses_.add_doubtful(layer.id, block, (entry.written || !index) ? stray : full);
    entry.written &= full;
    entry.durable &= entry.written;
    entry.remote &= found_.superblock->is_lazy() && !index && entry.written;
    if (entry.remote) entry.durable = entry.written;
    if (found_.report.crashed) entry = entry.as_durable();
    Store store{layer.table_offset + block * 8, entry};
    if (fault == EntryFault::kUnsynced) {
      // As above: a durable bit is missing, or there is a written bit too many.
      losses_.add_doubtful(layer.id, block, entry.written & ~entry.durable);
      store.entry.durable = store.entry.written;
    } else if (index) {
      const EntryFault left = found_.fault_of(Entry{index, full, full}.pack());
      if (left == EntryFault::kOutside || left == EntryFault::kStructure) {
        PCOW_TRY(keep(layer, block, index, "the entry referred to a block that cannot be its own"));
        losses_.add_gone(layer.id, block, entry.written);
        store.entry = {};
      } else if (entry.empty()) {
        PCOW_TRY(keep(layer, block, index, "the entry held nothing of this block"));
        claimed_.insert(index);
        store.entry = {};
      } else {
        if (stray)
          PCOW_TRY(keep(layer, block, index,
                        "the entry marked sub-blocks as durable that it did not hold"));
        const bool is_named = fault == EntryFault::kUnsound && found_.is_named(index);
        if (left == EntryFault::kShared || is_named)
          losses_.add_doubtful(layer.id, block, entry.written);
        if (!claimed_.insert(index).second || is_named) {
          store.copy_of = index;
          store.entry.index = static_cast<uint32_t>(end_++);
        }
      }
    }
    stores_.push_back(store);
    return {};
  }

  Result<void> apply() {
    Superblock next = *found_.superblock;
    const uint64_t directory_at = end_;
    if (!found_.mended_directory.empty())
      end_ += found_.geometry().blocks_for(found_.mended_directory.size());
    if (end_ > kMaxBlockIndex)
      return Error(Code::kTooLarge, file_->path() + ": no block number is left for a copy");
    auto size = file_->size();
    if (!size) return size.error();
    if (*size < file_offset_of(end_)) PCOW_TRY(file_->resize(file_offset_of(end_)));
    std::vector<char> bytes(found_.geometry().block_size());
    for (const Store& store : stores_) {
      if (!store.copy_of) continue;
      auto length = file_->read(file_offset_of(store.copy_of), bytes.data(), bytes.size());
      if (!length) return length.error();
      PCOW_TRY(file_->write(file_offset_of(store.entry.index), bytes.data(), bytes.size()));
    }
    if (!found_.mended_directory.empty()) {
      next.directory_offset = file_offset_of(directory_at);
      PCOW_TRY(file_->write(next.directory_offset, found_.mended_directory.data(),
                            found_.mended_directory.size()));
    }
    PCOW_TRY(file_->sync());
    for (const Store& store : stores_) {
      const uint64_t word = store.entry.pack();
      PCOW_TRY(file_->write(store.file_offset, &word, sizeof word));
    }
    // A checksum page of zeros covers nothing.
    for (const uint64_t file_offset : found_.damaged_checksums)
      PCOW_TRY(file_->punch(file_offset, kPageSize));
    PCOW_TRY(file_->sync());
    next.generation = found_.newest;
    next.clean = false;
    if (!found_.report.crashed) {
      next.boot = boot_id();
      next.cache = cache_token_of(*file_);
    }
    next.opener = Opener{};
    for (int slot = 0; slot < 2; slot++) {
      next.generation++;
      PCOW_TRY(write_superblock(*file_, next));
      PCOW_TRY(file_->sync());
    }
    return {};
  }

  const Inspection& found_;
  const std::shared_ptr<File> file_;
  LostAndFound lost_;
  Losses losses_;
  uint64_t end_ = 0;  // blocks of the file, with those that will be added
  std::unordered_set<uint32_t> claimed_;
  std::vector<Store> stores_;
};

bool is_in(const Finding& finding, const std::vector<Finding>& findings) {
  return std::any_of(findings.begin(), findings.end(), [&](const Finding& other) {
    return other.message == finding.message && other.file_offset == finding.file_offset;
  });
}

}  // namespace

Result<CheckReport> repair(const std::shared_ptr<File>& file, const CheckOptions& options,
                           const Progress& progress) {
  // Like any writer: what a killed writer has left only in the page cache must not be overwritten
  // piece by piece.
  PCOW_TRY(file->sync());
  Inspection before(file, false);
  PCOW_TRY(before.run(progress));
  if (before.superblock && before.superblock->read_only_compatible & ~kKnownReadOnlyCompatible)
    return Error(
        Code::kUnsupported,
        file->path() +
            " uses features that this program can read, but not write: a newer pcow is needed");
  const bool broken = before.report.damages || before.report.leaks || before.slot_damaged;
  if (!before.directory || (!broken && before.report.clean)) return std::move(before.report);
  std::string lost_path;
  std::vector<Loss> losses;
  if (broken) {
    Repair mending(before);
    PCOW_TRY(mending.run());
    lost_path = mending.lost_path();
    auto lost = mending.losses();
    if (!lost) return lost.error();
    losses = std::move(*lost);
  }
  // Opening for writing recovers the image and punches free space, which belongs to the repair. If
  // the image still cannot be opened (its base is missing), the next opener does that; the second
  // inspection says why.
  file->unlock();
  OpenOptions writing;
  writing.write = true;
  writing.observer = options.observer;
  if (auto image = Image::open(file->path(), writing)) PCOW_TRY((*image)->close());

  Inspection after(file, file->is_locked_by_other());
  PCOW_TRY(after.run(progress));
  CheckReport report = std::move(after.report);
  const uint64_t before_count = before.report.damages + before.report.leaks;
  const uint64_t after_count = report.damages + report.leaks;
  report.repaired = before_count > after_count ? before_count - after_count : 0;
  report.lost_path = lost_path;
  report.losses = std::move(losses);
  report.unplaced = before.report.leaks - std::min(before.report.leaks, report.leaks);
  report.older_directory = before.older_directory;
  report.dropped = before.report.dropped;
  for (Finding& finding : before.report.findings) {
    if (is_in(finding, report.findings)) continue;
    // A note on a snapshot that does not count is not a repaired fault: the snapshot is gone.
    const bool is_note = finding.severity == Severity::kNote;
    finding.repaired = !is_note || finding.structure == "superblock";
    report.repaired += is_note && finding.repaired ? 1 : 0;
    report.findings.push_back(std::move(finding));
  }
  return report;
}

}  // namespace pcow
