#include "engine/image/durability.h"

#include <algorithm>

#include "engine/rules.h"

namespace pcow {

void Durability::mark(const std::shared_ptr<Table>& table, uint64_t chunk) {
  const std::lock_guard lock(marking_);
  unsynced_[table].insert(chunk);
}

void Durability::forget(const Table& table) {
  const std::lock_guard lock(marking_);
  std::erase_if(unsynced_, [&](const auto& marked) { return marked.first.get() == &table; });
}

// Steps 1 to 4 for the entries of `marked`. The caller holds `syncing_`. `write_back` is step 2.
template <typename WriteBack>
Result<void> Durability::make_durable(const Unsynced& marked, const WriteBack& write_back) {
  struct Noted {
    Table* table;
    uint64_t block;
    Entry entry;
  };
  const auto take_note = [&] {
    std::vector<Noted> noted;
    for (const auto& [table, chunks] : marked) {
      for (const uint64_t chunk : chunks) {
        const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, table->entries());
        for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
          const Entry entry = Entry::unpack(table->load(block));
          if (entry.written != entry.durable) noted.push_back({table.get(), block, entry});
        }
      }
    }
    return noted;
  };
  auto noted_entries = take_note();
  // Another process may have cut the file short. It may have grown again since, but its entries or
  // blocks are gone nevertheless.
  if (keeps(Rule::kFileReachesBeforeUse)) PCOW_TRY(image_.file->check_length(space_->file_end()));

  if (keeps(Rule::kDataBeforeDurable)) PCOW_TRY(write_back());
  if (!keeps(Rule::kNotedBitsOnly)) noted_entries = take_note();
  for (const auto& [table, block, then] : noted_entries) {
    const std::lock_guard storing(chunk_locks_.of(block));
    Entry now = Entry::unpack(table->load(block));
    // Discarded meanwhile; its block is not used again before this sync is over.
    if (now.index != then.index) continue;
    now.durable |= then.written & now.written;
    table->store(block, now);
  }
  if (!noted_entries.empty() && keeps(Rule::kDurableBeforeReturn)) {
    for (const auto& [table, chunks] : marked)
      PCOW_TRY(table->sync(*chunks.begin(), *chunks.rbegin() + 1));
  }
  return {};
}

// Whether anything waits that only the kernel makes durable. A finished operation has left its mark
// before it returned, so no lock over all three conditions is needed.
bool Durability::needs_kernel() const {
  if (!image_.file->is_persistent()) return true;
  if (lent_ && keeps(Rule::kMappedBeforeReturn)) return true;
  if (image_.file->has_fresh_holes() && keeps(Rule::kHolesBeforeReturn)) return true;
  const std::lock_guard taking(marking_);
  return !unsynced_.empty();
}

Result<void> Durability::sync() {
  PCOW_TRY(superblocks_.check_settled());
  if (!needs_kernel() && !space_->has_pending()) return image_.file->sync_stored(0, kWholeFile);
  const uint64_t arrival = ++arrivals_;
  const std::lock_guard lock(syncing_);
  if (covered_ >= arrival) return {};  // a sync that began after this call has already run
  const uint64_t covering = arrivals_.load();

  Unsynced marked;
  {
    const std::lock_guard taking(marking_);
    marked.swap(unsynced_);
  }
  const bool by_kernel = !marked.empty() || needs_kernel();
  if (!keeps(Rule::kFreeingBeforePunch)) PCOW_TRY(space_->finish_sync(space_->take_released()));
  const std::vector<uint64_t> released = space_->take_released();
  space_->note_sync_began();
  PCOW_TRY(make_durable(marked, [&] {
    return by_kernel ? image_.file->sync() : image_.file->sync_stored(0, kWholeFile);
  }));
  space_->note_sync_done();
  covered_ = covering;

  if (!released.empty()) {
    const std::unique_lock barrier(gate_);
  }
  return space_->finish_sync(released);
}

// Everything that frozen layers hold is before `end`, with their tables, the layer directory and
// the superblock. What was written behind it is new data of a busy writer. Writing that back would
// make the writer wait for the disk, so it is left to the next sync. So are released blocks: while
// a hole is punched, and perhaps discarded on the disk, the kernel blocks writers of the file, and
// a guest whose memory has just been frozen needs many copies written.
Result<void> Durability::sync_frozen(const std::shared_ptr<Table>& active, uint64_t end) {
  PCOW_TRY(superblocks_.check_settled());
  const std::lock_guard lock(syncing_);
  Unsynced marked;
  {
    const std::lock_guard taking(marking_);
    auto others = unsynced_.extract(active);
    marked.swap(unsynced_);
    if (!others.empty()) unsynced_.insert(std::move(others));
  }
  return make_durable(marked, [&]() -> Result<void> {
    if (marked.empty() && !needs_kernel()) return image_.file->sync_stored(0, end);
    PCOW_TRY(write_back(end));
    return image_.file->sync(0, end);
  });
}

Result<void> Durability::write_back(uint64_t end) const {
  return image_.file->is_persistent() && !lent_ ? Result<void>() : image_.file->write_back(end);
}

Result<void> Durability::seal(const LayerDirectory& directory, const std::shared_ptr<Table>& active,
                              uint64_t end) {
  if (keeps(Rule::kDurableBeforeSeal)) PCOW_TRY(sync_frozen(active, end));
  uint64_t newest = 0;
  for (const Layer& layer : directory.layers)
    if (layer.id != directory.active) newest = std::max(newest, layer.id);
  if (newest <= superblocks_.current().sealed) return {};
  Superblock next = superblocks_.next();
  next.sealed = newest;
  PCOW_TRY(superblocks_.put(next));
  {
    const std::unique_lock lock(gate_);
    superblocks_.adopt(next);
  }
  return keeps(Rule::kSealBeforeReturn) ? sync_superblock(*image_.file) : Result<void>();
}

}  // namespace pcow
