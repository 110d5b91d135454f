// Deleting snapshots.
//
// A deleted layer is first hidden (one change of the directory: from then on it is deleted, whatever happens). A hidden
// layer without children is dropped. One with a single child is merged into it, and then dropped:
//   0. sixteen chunks at a time: what is to be handed on is verified, and the parent's checksums of it are taken away, durably
//   1. entry by entry, under the chunk's lock, the child takes what it does not hold itself: the parent's whole block
//      where the child has none (the entry is moved: one store), a copy of sub-blocks where it has one already
//   2. sync: the child's entries and copies are durable
//   3. the directory without the parent is committed
//   4. blocks that the child did not take are released
// Of the parent's table only what the heir holds durably is taken out, and that only on a full disk: hand_over(). So after a crash
// anywhere the merge starts over: what the child has taken, it holds.
// Until step 4 a block may be named by both; blocks that the child lets go meanwhile are held back (Space).
//
// Who may write a block that two tables name? Only the child, which is the only one that still needs what lies in it. A merge
// writes into blocks of its child, so nothing is ever merged *into* a layer that is to be merged away itself: some of the blocks that
// such a layer names may be its own child's by now. Of hidden layers that stand on each other, the one that is nearest to the active
// layer goes first. One that cannot be finished (a damaged block, a full disk) stays, and so do those below it; other branches go on.
// If a snapshot is deleted into which a merge was begun and not finished, three tables may name a block. What the nearest of
// them holds then hides all that the other two hold, and the block is released with the last of them.

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "engine/image/own_block.h"

namespace pcow {
namespace {

constexpr uint64_t kChunksAtOnce = 16;  // for which one sync takes the parent's checksums away

// Why one deletion cannot be finished now, though others can.
bool is_stuck(const ImageState& state, const Error& why) {
  return (why.code == Code::kCorrupt && !state.file->sync_failure()) || state.is_full(why);
}

}  // namespace

// Before the heir takes anything over of these chunks: what it will take is verified, for it has no checksum in the heir. Then the
// parent's checksums of them are taken away, and that is durable, before the heir can write into a block that it has taken over:
// after a crash such a block may hold what the heir has written while the heir's table does not name it yet, and whoever reads it
// through the parent must not call that damage. `*end` becomes the first chunk that must not be taken over, because of damage.
Result<void> ImageState::give_up_checksums(const Layer& parent, const Table& heir, uint64_t first, uint64_t* end) {
  const std::shared_ptr<const Checksums> checksums = source_in_use(parent.id)->checksums;
  if (!checksums) return {};
  const uint64_t entries = geometry.blocks_for(parent.size);
  const auto verify_chunk = [&](uint64_t chunk) -> Result<void> {
    EntryPage page;
    PCOW_TRY(read_entry_page(*file, parent.table_offset, entries, chunk, &page));
    for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
      const uint64_t block = chunk * kBlocksPerChunk + i;
      const Entry lower = Entry::unpack(page[i]);
      // What the heir holds never gets less while this goes on.
      if (lower.index && (lower.written & ~Entry::unpack(heir.load(block)).written))
        PCOW_TRY(checksums->verify(block, lower.index));
    }
    return {};
  };
  Result<void> outcome;
  uint64_t chunk = first;
  while (chunk < *end && (outcome = verify_chunk(chunk))) chunk++;
  *end = chunk;
  if (chunk == first || !keeps(Rule::kChecksumsGoneBeforeHeir)) return outcome;
  PCOW_TRY(file->punch((uint64_t{parent.checksums} << geometry.block_shift()) + first * kPageSize,
                       (chunk - first) * kPageSize));
  PCOW_TRY(file->sync());
  // Nobody is still comparing with what was there.
  const std::unique_lock barrier(gate);
  checksums->forget(first, chunk);
  return outcome;
}

// The heir takes over what it does not hold of a chunk. `*taken`: all blocks before this one, also where it fails.
Result<void> ImageState::merge_chunk(const Layer& parent, const std::shared_ptr<Table>& heir, uint64_t chunk,
                                     uint64_t* taken) {
  EntryPage page;
  *taken = chunk * kBlocksPerChunk;
  PCOW_TRY(read_entry_page(*file, parent.table_offset, geometry.blocks_for(parent.size), chunk, &page));
  for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
    if (page[i] == 0) continue;
    const uint64_t block = chunk * kBlocksPerChunk + i;
    *taken = block;
    const Entry lower = Entry::unpack(page[i]);
    PCOW_TRY(heir->ensure(chunk));
    const std::lock_guard lock(chunk_lock(block));
    const Entry entry = Entry::unpack(heir->load(block));
    const auto missing = static_cast<uint16_t>(lower.written & ~entry.written);
    if (!missing) continue;
    if (entry.empty()) {
      heir->store(block, lower);
      // At once: what an interrupted merge has stored is not looked at again by the one that goes on.
      mark_unsynced(heir, chunk);
    } else if (!lower.index && !entry.index) {
      make_zero(heir.get(), block, entry, missing);
    } else {
      const auto copy = [&](uint64_t place) {
        return copy_sub_blocks(place, missing, [&](uint32_t within, char* to, uint32_t length) -> Result<void> {
          if (lower.index)
            return file->read_all((uint64_t{lower.index} << geometry.block_shift()) + within, to, length);
          std::fill_n(to, length, 0);
          return {};
        });
      };
      const auto owned = make_own(heir, block, entry, {missing}, Purpose::kGivingBack, copy);
      if (!owned) return owned.error();
    }
  }
  return {};
}

// Chunks [first, end), where the heir holds all before. Where the disk is full, what the heir holds is taken out of the parent, and
// gives its space for what is to come; where there is nothing yet, the reserve does.
Result<void> ImageState::merge_chunks(const Layer& parent, const Layer& child, const std::shared_ptr<Table>& heir,
                                      uint64_t first, uint64_t end, const std::function<bool(uint64_t chunk)>& go_on) {
  for (uint64_t chunk = first; chunk < end;) {
    if (!go_on(chunk))
      return Error(Code::kCancelled, "the deletion was interrupted; it is finished when " + path +
                                         " is next opened, or by the next deletion");
    uint64_t taken = 0;
    auto merged = merge_chunk(parent, heir, chunk, &taken);
    if (!merged && !is_full(merged.error())) return merged;
    if (!merged && !space->spend_reserve()) {
      auto handed = hand_over(parent, child, heir, taken);
      if (!handed) return handed.error();
      if (!*handed) return merged;
    }
    if (merged) chunk++;
  }
  return {};
}

// From here on everybody reads what the heir has taken over in the heir. With the superblock of the next generation: readers in other
// processes load the tables anew.
Result<void> ImageState::show_heir(const Layer& child, const Table& heir) {
  const std::unique_lock lock(gate);
  const Superblock next = next_superblock();
  PCOW_TRY(put_superblock(next));
  superblock = next;
  if (child.id != directory.active)
    sources[static_cast<size_t>(directory.find(child.id) - directory.layers.data())] = source_of(child, heir.present());
  handing_over = true;
  epoch++;
  below = chain_from(directory.active_layer().parent);
  return {};
}

// Takes out of the parent what its heir holds durably of blocks before `end`, all of which the heir has taken. False: nothing.
//   1. sync: what the heir has taken is durable. What it holds of other blocks may only have come to be *zero here* since, by a discard
//      that no sync has seen yet
//   2. nobody reads it in the parent any more
//   3. the parent's entries are emptied, pages without an entry punched, and the blocks that nobody names then released
//   4. sync: that is durable, and the blocks are given back to the disk
// After a crash before 4 any of these entries may be there still; the heir holds what they say. Only a discard, which would leave
// nothing in the heir where nothing lies below, leaves zeros as long as that lasts (`handing_over`).
Result<bool> ImageState::hand_over(const Layer& parent, const Layer& child, const std::shared_ptr<Table>& heir,
                                   uint64_t end) {
  if (keeps(Rule::kHeirBeforeHandingOver)) PCOW_TRY(sync());
  PCOW_TRY(show_heir(child, *heir));
  auto table = Table::map(file, parent.table_offset, geometry.blocks_for(parent.size), true);
  if (!table) return table.error();
  std::vector<Layer> others = hidden_ancestors(parent);
  others.push_back(child);
  bool any = false;
  for (uint64_t chunk = 0; chunk * kBlocksPerChunk < end; chunk++) {
    if (!(*table)->may_hold(chunk)) continue;
    PCOW_TRY((*table)->ensure(chunk));
    const std::lock_guard lock(chunk_lock(chunk * kBlocksPerChunk));
    auto unnamed = unnamed_blocks(parent, others, chunk);
    if (!unnamed) return unnamed.error();
    bool left = false;
    for (uint64_t i = 0; i < kBlocksPerChunk && chunk * kBlocksPerChunk + i < (*table)->entries(); i++) {
      const uint64_t block = chunk * kBlocksPerChunk + i;
      const Entry lower = Entry::unpack((*table)->load(block));
      const Entry entry = Entry::unpack(heir->load(block));
      if (lower == Entry{}) continue;
      const uint16_t held = keeps(Rule::kHeirBeforeHandingOver) ? entry.durable : entry.written;
      if (block >= end || (lower.written & ~held)) {
        left = true;
        continue;
      }
      (*table)->store(block, {});
      if ((*unnamed)[i]) space->release_now((*unnamed)[i]);
      any = true;
    }
    if (!left) PCOW_TRY(file->punch(parent.table_offset + chunk * kPageSize, kPageSize));
  }
  PCOW_TRY(sync());
  const std::unique_lock lock(gate);
  handing_over = false;
  return any;
}

Result<void> ImageState::merge(const Layer& parent, const Layer& child, const Progress& progress) {
  std::shared_ptr<Table> table = active;
  if (child.id != directory.active) {
    auto mapped = Table::map(file, child.table_offset, geometry.blocks_for(child.size), true);
    if (!mapped) return mapped.error();
    table = std::move(*mapped);
  }
  auto present = present_chunks(*file, parent.table_offset, geometry.blocks_for(parent.size));
  if (!present) return present.error();
  const uint64_t chunk_size = kBlocksPerChunk << geometry.block_shift();
  uint64_t total = 0;
  for (const auto& [first, end] : *present) total += end - first;
  uint64_t before = 0;
  for (const auto& [first, end] : *present) {
    const auto go_on = [&, first = first](uint64_t chunk) {
      return !progress || progress((before + chunk - first) * chunk_size, total * chunk_size);
    };
    for (uint64_t from = first; from < end;) {
      uint64_t to = std::min(end, from + kChunksAtOnce);
      auto verified = give_up_checksums(parent, *table, from, &to);
      PCOW_TRY(merge_chunks(parent, child, table, from, to, go_on));
      PCOW_TRY(verified);
      from = to;
    }
    before += end - first;
  }
  if (keeps(Rule::kHeirBeforeSuperblock)) PCOW_TRY(sync());

  Prepared prepared;
  prepared.directory = directory;
  prepared.directory.find(child.id)->parent = parent.parent;
  prepared.directory.erase(parent.id);
  if (child.id != directory.active) {
    prepared.heir = child.id;
    prepared.heir_source = source_of(child, table->present());
  }
  PCOW_TRY(change_directory(&prepared));
  if (progress) progress(total * chunk_size, total * chunk_size);
  return release_layer(parent, &child);
}

// Layers whose tables may name what `layer` names because a merge from there was begun and not finished.
std::vector<Layer> ImageState::hidden_ancestors(const Layer& layer) const {
  std::vector<Layer> hidden;
  for (const Layer* at = directory.find(layer.parent); at && at->hidden; at = directory.find(at->parent))
    hidden.push_back(*at);
  return hidden;
}

// The blocks that a layer names in a chunk; 0 where one of `others` names the same.
Result<std::array<uint32_t, kBlocksPerChunk>> ImageState::unnamed_blocks(const Layer& layer,
                                                                         const std::vector<Layer>& others,
                                                                         uint64_t chunk) const {
  std::array<uint32_t, kBlocksPerChunk> unnamed;
  EntryPage page;
  PCOW_TRY(read_entry_page(*file, layer.table_offset, geometry.blocks_for(layer.size), chunk, &page));
  std::transform(page.begin(), page.end(), unnamed.begin(), [](uint64_t word) { return Entry::unpack(word).index; });
  for (const Layer& other : others) {
    if (chunk >= geometry.chunks_for(other.size)) continue;
    PCOW_TRY(read_entry_page(*file, other.table_offset, geometry.blocks_for(other.size), chunk, &page));
    for (size_t i = 0; i < kBlocksPerChunk; i++)
      if (Entry::unpack(page[i]).index == unnamed[i]) unnamed[i] = 0;
  }
  return unnamed;
}

// Releases what a layer that is gone from the directory used: its table, and its blocks but for those that another table names.
// That can be the one of `heir`, or of a hidden layer below: what a merge from there, which was begun and not finished, has handed on.
Result<void> ImageState::release_layer(const Layer& gone, const Layer* heir) {
  std::vector<Layer> others = hidden_ancestors(gone);
  if (heir) others.push_back(*heir);
  const auto release = [&]() -> Result<void> {
    auto present = present_chunks(*file, gone.table_offset, geometry.blocks_for(gone.size));
    if (!present) return present.error();
    for (const auto& [first, end] : *present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        auto unnamed = unnamed_blocks(gone, others, chunk);
        if (!unnamed) return unnamed.error();
        for (const uint32_t index : *unnamed)
          if (index) space->release(index, 1);
      }
    }
    space->release(gone.table_offset >> geometry.block_shift(), gone.table_length >> geometry.block_shift());
    if (gone.checksums) space->release(gone.checksums, gone.table_length >> geometry.block_shift());
    return {};
  };
  auto released = release();
  // Neither in use nor on its way to a hole any more: only an opener that finds the image unclean punches it out.
  if (!released) leaks = true;
  return released;
}

// Drops a hidden layer without children, or merges it into its only one.
Result<void> ImageState::collect_layer(const Layer& spent, const Progress& progress) {
  const auto child = std::find_if(directory.layers.begin(), directory.layers.end(),
                                  [&](const Layer& layer) { return layer.parent == spent.id; });
  if (child != directory.layers.end()) return merge(spent, Layer(*child), progress);
  Prepared prepared;
  prepared.directory = directory;
  prepared.directory.erase(spent.id);
  PCOW_TRY(change_directory(&prepared));
  return release_layer(spent, nullptr);
}

Result<void> ImageState::collect(const Progress& progress) {
  std::set<uint64_t> stuck;  // ids
  Result<void> outcome;
  for (;;) {
    const auto may_go = [&](const Layer& layer) {
      if (!directory.is_spent(layer) || stuck.contains(layer.id)) return false;
      if (!keeps(Rule::kMergeNearestFirst)) return true;
      return std::none_of(directory.layers.begin(), directory.layers.end(),
                          [&](const Layer& other) { return other.parent == layer.id && directory.is_spent(other); });
    };
    const auto spent = std::find_if(directory.layers.begin(), directory.layers.end(), may_go);
    if (spent == directory.layers.end()) break;
    // Of all that wait: an heir of any of them may have begun to take blocks over.
    space->hold_releases(true);
    const Layer gone = *spent;
    auto collected = giving_back_by_change([&] { return collect_layer(gone, progress); });
    if (collected) continue;
    // One that is damaged, or too large for the disk, does not keep those of other branches from going.
    if (!is_stuck(*this, collected.error())) {
      space->end_spending();
      return collected;
    }
    if (outcome) outcome = std::move(collected);
    stuck.insert(gone.id);
  }
  space->end_spending();
  return outcome ? let_go() : outcome;
}

// A reader in another process goes by the tables that it has loaded until it sees another generation. A compaction that could not
// write its superblock owes it one: only with that may the blocks be used again.
Result<void> ImageState::let_go() {
  if (owing) {
    const std::unique_lock lock(gate);
    const Superblock next = next_superblock();
    PCOW_TRY(put_superblock(next));
    superblock = next;
    owing = false;
  }
  space->hold_releases(false);
  return {};
}

Result<void> ImageState::finish_deletions(const std::string& what) {
  auto collected = collect(nullptr);
  if (collected || collected.error().code == Code::kCancelled) return collected;
  const Error& why = collected.error();
  const bool damaged = why.code == Code::kCorrupt;
  return Error(why.code, why.err,
               path + ": " + what +
                   " waits for the deletion of a snapshot that was begun, and it cannot be finished: " + why.message +
                   (damaged ? ". Write the damaged place anew, or take the checksums away (pcow scrub --remove)" : ""));
}

Result<void> Image::remove(const std::string& name, const Progress& progress) {
  ImageState& state = *state_;
  return state.change_structure([&]() -> Result<void> {
    const auto layer = state.snapshot_called(name);
    if (!layer) return layer.error();
    const uint64_t id = (*layer)->id;
    PCOW_TRY(state.giving_back_by_change([&]() -> Result<void> {
      ImageState::Prepared prepared;
      prepared.directory = state.directory;
      Layer* hidden = prepared.directory.find(id);
      hidden->hidden = true;
      hidden->automatic = false;
      hidden->name.clear();
      return state.change_directory(&prepared);
    }));
    auto collected = state.collect(progress);
    // What keeps another deletion from being finished is no failure of this one.
    if (!collected && is_stuck(state, collected.error()) && !state.directory.find(id))
      return state.leave_unfinished(collected.error());
    return collected;
  });
}

}  // namespace pcow
