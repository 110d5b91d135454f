// Making things durable.
//
// Order of a sync (docs/format.md, "What a writer does, in which order"):
//   1. take the marked chunks and the released blocks; note which sub-blocks are `written` but not `durable`
//   2. fdatasync: their data, their entries, and every freeing stored before are on the disk
//   3. set `durable` for exactly the noted bits (a write that came in meanwhile keeps waiting for the next sync)
//   4. where step 3 set anything: those entries are on the disk (and no more: what a busy writer has written meanwhile can wait)
//   5. punch the released blocks, after everybody who may still be reading them has passed the gate; free what the
//      sync before punched, for step 2 made those holes durable
// The sync of a snapshot (sync_frozen) takes steps 1 to 4 for the frozen layers alone.
// In persistent memory what the engine has stored is durable already. Then steps 1 to 4 are only needed for what others have stored through
// mappings, for holes, and for entries that were not durable when the image was opened; without any of these, and without released blocks,
// a sync makes no system call.
// A crash between 2 and 4 loses bits whose data is on the disk; the sync had not returned, so nothing was promised.

#include <shared_mutex>

#include "engine/image/image_state.h"
#include "engine/rules.h"

namespace pcow {

void ImageState::mark_unsynced(const std::shared_ptr<Table>& table, uint64_t chunk) {
  const std::lock_guard lock(marking);
  unsynced[table].insert(chunk);
}

void ImageState::forget_unsynced(const Table& table) {
  const std::lock_guard lock(marking);
  std::erase_if(unsynced, [&](const auto& marked) { return marked.first.get() == &table; });
}

// Steps 1 to 4 for what `marked` names; with `syncing` held. `write_back` is step 2.
template <typename WriteBack>
Result<void> ImageState::make_durable(const Unsynced& marked, const WriteBack& write_back) {
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
  // Somebody who may write the file has cut it short. It may have grown again since: its entries, or blocks, are gone all the same.
  if (keeps(Rule::kFileReachesBeforeUse)) PCOW_TRY(file->check_length(space->file_end()));

  if (keeps(Rule::kDataBeforeDurable)) PCOW_TRY(write_back());
  if (!keeps(Rule::kNotedBitsOnly)) noted_entries = take_note();
  for (const auto& [table, block, then] : noted_entries) {
    const std::lock_guard storing(chunk_lock(block));
    Entry now = Entry::unpack(table->load(block));
    if (now.index != then.index) continue;  // discarded meanwhile; its block is not reused before this sync is over
    now.durable |= then.written & now.written;
    table->store(block, now);
  }
  if (!noted_entries.empty() && keeps(Rule::kDurableBeforeReturn)) {
    for (const auto& [table, chunks] : marked) PCOW_TRY(table->sync(*chunks.begin(), *chunks.rbegin() + 1));
  }
  return {};
}

// Whether something waits that only the kernel makes durable. An operation that is over has left its trace before it returned: no lock
// over all three is needed.
bool ImageState::needs_kernel() const {
  if (!file->is_persistent()) return true;
  if (lent && keeps(Rule::kMappedBeforeReturn)) return true;
  if (file->has_fresh_holes() && keeps(Rule::kHolesBeforeReturn)) return true;
  const std::lock_guard taking(marking);
  return !unsynced.empty();
}

Result<void> ImageState::sync() {
  PCOW_TRY(check_settled());
  if (!needs_kernel() && !space->has_pending()) return file->sync_stored(0, kWholeFile);
  const uint64_t arrival = ++sync_arrivals;
  const std::lock_guard lock(syncing);
  if (sync_covered >= arrival) return {};  // one that began after we came has already run
  const uint64_t covering = sync_arrivals.load();

  Unsynced marked;
  {
    const std::lock_guard taking(marking);
    marked.swap(unsynced);
  }
  const bool by_kernel = !marked.empty() || needs_kernel();
  if (!keeps(Rule::kFreeingBeforePunch)) PCOW_TRY(space->finish_sync(space->take_released()));
  const std::vector<uint64_t> released = space->take_released();
  space->note_sync_began();
  PCOW_TRY(make_durable(marked, [&] { return by_kernel ? file->sync() : file->sync_stored(0, kWholeFile); }));
  space->note_sync_done();
  sync_covered = covering;

  if (!released.empty()) {
    const std::unique_lock barrier(gate);
  }
  return space->finish_sync(released);
}

// What the frozen layers hold lies before `end`, with their tables, the directory and the superblock. What has been written since behind
// it is a busy writer's new data: to write that back would make the writer wait for the disk, and it can wait for the next sync. Freed
// blocks wait for one as well: while a hole is punched, and perhaps discarded on the disk, the kernel keeps writers of the file waiting,
// and a guest whose memory has just been frozen needs many copies written.
Result<void> ImageState::sync_frozen(uint64_t end) {
  PCOW_TRY(check_settled());
  const std::lock_guard lock(syncing);
  Unsynced marked;
  {
    const std::lock_guard taking(marking);
    auto others = unsynced.extract(active);
    marked.swap(unsynced);
    if (!others.empty()) unsynced.insert(std::move(others));
  }
  return make_durable(marked, [&]() -> Result<void> {
    if (marked.empty() && !needs_kernel()) return file->sync_stored(0, end);
    PCOW_TRY(write_back(end));
    return file->sync(0, end);
  });
}

Result<void> ImageState::write_back(uint64_t end) {
  return file->is_persistent() && !lent ? Result<void>() : file->write_back(end);
}

Result<void> Image::sync() {
  ImageState& state = *state_;
  {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
  }
  if (!state.writable()) return {};
  if (state.doubt) {
    const std::lock_guard structure(state.structure);
    if (state.doubt) PCOW_TRY(state.noted(state.settle()));
  }
  return state.noted(state.sync());
}

}  // namespace pcow
