// Making things durable.
//
// Order of a sync (crash rules, docs/format.md):
//   1. take the marked chunks and the released blocks; note which sub-blocks are `written` but not `durable`
//   2. fdatasync: their data, their entries, and every freeing stored before are on the disk
//   3. set `durable` for exactly the noted bits (a write that came in meanwhile keeps waiting for the next sync)
//   4. where step 3 set anything: those entries are on the disk (and no more: what a busy writer has written meanwhile can wait)
//   5. punch the released blocks, after everybody who may still be reading them has passed the gate; free what the
//      sync before punched, for step 2 made those holes durable
// A crash between 2 and 4 loses bits whose data is on the disk; the sync had not returned, so nothing was promised.

#include <shared_mutex>

#include "image_state.h"
#include "rules.h"

namespace pcow {

void ImageState::mark_unsynced(const std::shared_ptr<Table>& table, uint64_t chunk) {
  const std::lock_guard lock(marking);
  unsynced[table].insert(chunk);
}

void ImageState::forget_unsynced(const Table& table) {
  const std::lock_guard lock(marking);
  std::erase_if(unsynced, [&](const auto& marked) { return marked.first.get() == &table; });
}

Result<void> ImageState::sync(Freed freed) {
  const uint64_t arrival = ++sync_arrivals;
  const std::lock_guard lock(syncing);
  if (sync_covered >= arrival) return {};  // one that began after we came has already run
  const uint64_t covering = sync_arrivals.load();

  Unsynced marked;
  {
    const std::lock_guard taking(marking);
    marked.swap(unsynced);
  }
  if (!keeps(Rule::kFreeingBeforePunch)) PCOW_TRY(space->finish_sync(space->take_released()));
  const std::vector<uint64_t> released = freed == Freed::kGiveBack ? space->take_released() : std::vector<uint64_t>();
  space->note_sync_began();

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

  if (keeps(Rule::kDataBeforeDurable)) PCOW_TRY(file->sync());
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
  space->note_sync_done();
  sync_covered = covering;

  if (freed == Freed::kKeep) return {};
  if (!released.empty()) {
    const std::unique_lock barrier(gate);
  }
  return space->finish_sync(released);
}

Result<void> Image::sync() {
  ImageState& state = *state_;
  {
    const std::shared_lock lock(state.gate);
    if (state.closed) return state.closed_error();
  }
  if (!state.writable()) return {};
  return state.noted(state.sync());
}

}  // namespace pcow
