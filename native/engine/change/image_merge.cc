// Deleting snapshots.
//
// A deleted layer is first hidden (one change of the layer directory: from then on it is deleted, whatever happens). A hidden
// layer without children is dropped. One with a single child is merged into it, and then dropped:
//   0. sixteen chunks at a time: what is to be handed on is verified, and the parent's checksums of it are taken away, durably
//   1. entry by entry, under the chunk's lock, the child takes what it does not hold itself: the parent's whole block
//      where the child has none (the entry is moved: one store), a copy of sub-blocks where it has one already
//   2. sync: the child's entries and copies are durable
//   3. the flip to a layer directory without the parent
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
#include <set>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

constexpr uint64_t kChunksAtOnce = 16;  // for which one sync takes the parent's checksums away

// Why one deletion cannot be finished now, though others can.
bool is_stuck(const ImageState& state, const Error& why) {
  return (why.code == Code::kCorrupt && !state.file->sync_failure()) || state.full_disk.is_full(why);
}

// Layers whose tables may name what `layer` names because a merge from there was begun and not finished.
std::vector<Layer> hidden_ancestors(const ImageState& state, const Layer& layer) {
  const LayerDirectory& directory = state.layers.directory();
  std::vector<Layer> hidden;
  for (const Layer* at = directory.find(layer.parent); at && at->hidden; at = directory.find(at->parent))
    hidden.push_back(*at);
  return hidden;
}

// The blocks that a layer names in a chunk; 0 where one of `others` names the same.
Result<std::array<uint32_t, kBlocksPerChunk>> unnamed_blocks(const ImageState& state, const Layer& layer,
                                                             const std::vector<Layer>& others, uint64_t chunk) {
  std::array<uint32_t, kBlocksPerChunk> unnamed;
  EntryPage page;
  PCOW_TRY(read_entry_page(*state.file, layer.table_offset, state.geometry.blocks_for(layer.size), chunk, &page));
  std::transform(page.begin(), page.end(), unnamed.begin(), [](uint64_t word) { return Entry::unpack(word).index; });
  for (const Layer& other : others) {
    if (chunk >= state.geometry.chunks_for(other.size)) continue;
    PCOW_TRY(read_entry_page(*state.file, other.table_offset, state.geometry.blocks_for(other.size), chunk, &page));
    for (size_t i = 0; i < kBlocksPerChunk; i++)
      if (Entry::unpack(page[i]).index == unnamed[i]) unnamed[i] = 0;
  }
  return unnamed;
}

// One merge of a hidden layer into its only child.
class Merge {
 public:
  Merge(ImageState* state, const Layer& parent, const Layer& child, std::shared_ptr<Table> heir)
      : state_(*state), parent_(parent), child_(child), heir_(std::move(heir)) {}

  Result<void> run(const Progress& progress) {
    auto present = present_chunks(*state_.file, parent_.table_offset, state_.geometry.blocks_for(parent_.size));
    if (!present) return present.error();
    const uint64_t chunk_size = kBlocksPerChunk << state_.geometry.block_shift();
    uint64_t total = 0;
    for (const auto& [first, end] : *present) total += end - first;
    uint64_t before = 0;
    for (const auto& [first, end] : *present) {
      const auto go_on = [&, first = first](uint64_t chunk) {
        return !progress || progress((before + chunk - first) * chunk_size, total * chunk_size);
      };
      for (uint64_t from = first; from < end;) {
        uint64_t to = std::min(end, from + kChunksAtOnce);
        auto verified = give_up_checksums(from, &to);
        PCOW_TRY(merge_chunks(from, to, go_on));
        PCOW_TRY(verified);
        from = to;
      }
      before += end - first;
    }
    if (keeps(Rule::kHeirBeforeSuperblock)) PCOW_TRY(state_.durability.sync());

    PreparedStructure prepared;
    prepared.directory = state_.layers.directory();
    prepared.directory.find(child_.id)->parent = parent_.parent;
    prepared.directory.erase(parent_.id);
    if (!heir_is_active()) {
      prepared.heir = child_.id;
      prepared.heir_source = state_.layers.source_of(child_, heir_->present());
    }
    PCOW_TRY(state_.structure.change_to(&prepared));
    if (progress) progress(total * chunk_size, total * chunk_size);
    return release_layer(&state_, parent_, &child_);
  }

 private:
  bool heir_is_active() const { return child_.id == state_.layers.directory().active; }

  // Before the heir takes anything over of these chunks: what it will take is verified, for it has no checksum in the heir. Then the
  // parent's checksums of them are taken away, and that is durable, before the heir can write into a block that it has taken over:
  // after a crash such a block may hold what the heir has written while the heir's table does not name it yet, and whoever reads it
  // through the parent must not call that damage. `*end` becomes the first chunk that must not be taken over, because of damage.
  Result<void> give_up_checksums(uint64_t first, uint64_t* end) {
    const std::shared_ptr<const Checksums> checksums = state_.layers.source_in_use(parent_.id)->checksums;
    if (!checksums) return {};
    const uint64_t entries = state_.geometry.blocks_for(parent_.size);
    const auto verify_chunk = [&](uint64_t chunk) -> Result<void> {
      EntryPage page;
      PCOW_TRY(read_entry_page(*state_.file, parent_.table_offset, entries, chunk, &page));
      for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
        const uint64_t block = chunk * kBlocksPerChunk + i;
        const Entry lower = Entry::unpack(page[i]);
        // What the heir holds never gets less while this goes on.
        if (lower.index && (lower.written & ~Entry::unpack(heir_->load(block)).written))
          PCOW_TRY(checksums->verify(block, lower.index));
      }
      return {};
    };
    Result<void> outcome;
    uint64_t chunk = first;
    while (chunk < *end && (outcome = verify_chunk(chunk))) chunk++;
    *end = chunk;
    if (chunk == first || !keeps(Rule::kChecksumsGoneBeforeHeir)) return outcome;
    PCOW_TRY(state_.file->punch((uint64_t{parent_.checksums} << state_.geometry.block_shift()) + first * kPageSize,
                                (chunk - first) * kPageSize));
    PCOW_TRY(state_.file->sync());
    // Nobody is still comparing with what was there.
    const std::unique_lock barrier(state_.gate);
    checksums->forget(first, chunk);
    return outcome;
  }

  // The heir takes over what it does not hold of a chunk. `*taken`: all blocks before this one, also where it fails.
  Result<void> merge_chunk(uint64_t chunk, uint64_t* taken) {
    EntryPage page;
    *taken = chunk * kBlocksPerChunk;
    PCOW_TRY(
        read_entry_page(*state_.file, parent_.table_offset, state_.geometry.blocks_for(parent_.size), chunk, &page));
    for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
      if (page[i] == 0) continue;
      const uint64_t block = chunk * kBlocksPerChunk + i;
      *taken = block;
      const Entry lower = Entry::unpack(page[i]);
      PCOW_TRY(heir_->ensure(chunk));
      const std::lock_guard lock(state_.chunk_locks.of(block));
      const Entry entry = Entry::unpack(heir_->load(block));
      const auto missing = static_cast<uint16_t>(lower.written & ~entry.written);
      if (!missing) continue;
      if (entry.empty()) {
        heir_->store(block, lower);
        // At once: what an interrupted merge has stored is not looked at again by the one that goes on.
        state_.durability.mark(heir_, chunk);
      } else if (!lower.index && !entry.index) {
        state_.own_blocks.make_zero(heir_.get(), block, entry, missing);
      } else {
        const auto copy = [&](uint64_t block_offset) {
          return state_.own_blocks.copy_sub_blocks(
              block_offset, missing, [&](uint32_t within, char* to, uint32_t length) -> Result<void> {
                if (lower.index)
                  return state_.file->read_all((uint64_t{lower.index} << state_.geometry.block_shift()) + within, to,
                                               length);
                std::fill_n(to, length, 0);
                return {};
              });
        };
        const auto owned =
            state_.own_blocks.make_own(heir_, block, entry, {missing}, OwnBlocks::Purpose::kGivingBack, copy);
        if (!owned) return owned.error();
      }
    }
    return {};
  }

  // Chunks [first, end), where the heir holds all before. Where the disk is full, what the heir holds is taken out of the parent, and
  // gives its space for what is to come; where there is nothing yet, the reserve does.
  Result<void> merge_chunks(uint64_t first, uint64_t end, const std::function<bool(uint64_t chunk)>& go_on) {
    for (uint64_t chunk = first; chunk < end;) {
      if (!go_on(chunk))
        return Error(Code::kCancelled, "the deletion was interrupted; it is finished when " + state_.path +
                                           " is next opened, or by the next deletion");
      uint64_t taken = 0;
      auto merged = merge_chunk(chunk, &taken);
      if (!merged && !state_.full_disk.is_full(merged.error())) return merged;
      if (!merged && !state_.space->spend_reserve()) {
        auto handed = hand_over(taken);
        if (!handed) return handed.error();
        if (!*handed) return merged;
      }
      if (merged) chunk++;
    }
    return {};
  }

  // From here on everybody reads what the heir has taken over in the heir. With the superblock of the next generation: readers in other
  // processes load the tables anew.
  Result<void> show_heir() {
    const std::unique_lock lock(state_.gate);
    PCOW_TRY(state_.superblocks.renew());
    if (!heir_is_active()) state_.layers.adopt_chunks(child_, heir_->present());
    state_.layers.set_handing_over(true);
    state_.layers.renew_chains();
    return {};
  }

  // Takes out of the parent what its heir holds durably of blocks before `end`, all of which the heir has taken. False: nothing.
  //   1. sync: what the heir has taken is durable. What it holds of other blocks may only have come to be *zero here* since, by a discard
  //      that no sync has seen yet
  //   2. nobody reads it in the parent any more
  //   3. the parent's entries are emptied, pages without an entry punched, and the blocks that nobody names then released
  //   4. sync: that is durable, and the blocks are given back to the disk
  // After a crash before 4 any of these entries may be there still; the heir holds what they say. Only a discard, which would leave
  // nothing in the heir where nothing lies below, leaves zeros as long as that lasts (Layers::set_handing_over()).
  Result<bool> hand_over(uint64_t end) {
    if (keeps(Rule::kHeirBeforeHandingOver)) PCOW_TRY(state_.durability.sync());
    PCOW_TRY(show_heir());
    auto table = Table::map(state_.file, parent_.table_offset, state_.geometry.blocks_for(parent_.size), true);
    if (!table) return table.error();
    std::vector<Layer> others = hidden_ancestors(state_, parent_);
    others.push_back(child_);
    bool any = false;
    for (uint64_t chunk = 0; chunk * kBlocksPerChunk < end; chunk++) {
      if (!(*table)->may_hold(chunk)) continue;
      PCOW_TRY((*table)->ensure(chunk));
      const std::lock_guard lock(state_.chunk_locks.of(chunk * kBlocksPerChunk));
      auto unnamed = unnamed_blocks(state_, parent_, others, chunk);
      if (!unnamed) return unnamed.error();
      bool left = false;
      for (uint64_t i = 0; i < kBlocksPerChunk && chunk * kBlocksPerChunk + i < (*table)->entries(); i++) {
        const uint64_t block = chunk * kBlocksPerChunk + i;
        const Entry lower = Entry::unpack((*table)->load(block));
        const Entry entry = Entry::unpack(heir_->load(block));
        if (lower == Entry{}) continue;
        const uint16_t held = keeps(Rule::kHeirBeforeHandingOver) ? entry.durable : entry.written;
        if (block >= end || (lower.written & ~held)) {
          left = true;
          continue;
        }
        (*table)->store(block, {});
        if ((*unnamed)[i]) state_.space->release_now((*unnamed)[i]);
        any = true;
      }
      if (!left) PCOW_TRY(state_.file->punch(parent_.table_offset + chunk * kPageSize, kPageSize));
    }
    PCOW_TRY(state_.durability.sync());
    const std::unique_lock lock(state_.gate);
    state_.layers.set_handing_over(false);
    return any;
  }

  ImageState& state_;
  const Layer parent_;
  const Layer child_;
  const std::shared_ptr<Table> heir_;  // of the child
};

Result<void> merge(ImageState& state, const Layer& parent, const Layer& child, const Progress& progress) {
  std::shared_ptr<Table> table = state.layers.active();
  if (child.id != state.layers.directory().active) {
    auto mapped = Table::map(state.file, child.table_offset, state.geometry.blocks_for(child.size), true);
    if (!mapped) return mapped.error();
    table = std::move(*mapped);
  }
  return Merge(&state, parent, child, std::move(table)).run(progress);
}

// Drops a hidden layer without children, or merges it into its only one.
Result<void> collect_layer(ImageState& state, const Layer& spent, const Progress& progress) {
  const LayerDirectory& directory = state.layers.directory();
  const auto child = std::find_if(directory.layers.begin(), directory.layers.end(),
                                  [&](const Layer& layer) { return layer.parent == spent.id; });
  if (child != directory.layers.end()) return merge(state, spent, *child, progress);
  PreparedStructure prepared;
  prepared.directory = directory;
  prepared.directory.erase(spent.id);
  PCOW_TRY(state.structure.change_to(&prepared));
  return release_layer(&state, spent, nullptr);
}

}  // namespace

Result<void> release_layer(ImageState* image, const Layer& gone, const Layer* heir) {
  ImageState& state = *image;
  std::vector<Layer> others = hidden_ancestors(state, gone);
  if (heir) others.push_back(*heir);
  const auto release = [&]() -> Result<void> {
    auto present = present_chunks(*state.file, gone.table_offset, state.geometry.blocks_for(gone.size));
    if (!present) return present.error();
    for (const auto& [first, end] : *present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        auto unnamed = unnamed_blocks(state, gone, others, chunk);
        if (!unnamed) return unnamed.error();
        for (const uint32_t index : *unnamed)
          if (index) state.space->release(index, 1);
      }
    }
    state.space->release(gone.table_offset >> state.geometry.block_shift(),
                         gone.table_length >> state.geometry.block_shift());
    if (gone.checksums) state.space->release(gone.checksums, gone.table_length >> state.geometry.block_shift());
    return {};
  };
  auto released = release();
  // Neither in use nor on its way to a hole any more: only an opener that finds the image unclean punches it out.
  if (!released) state.structure.note_leak();
  return released;
}

Result<void> collect(ImageState* image, const Progress& progress) {
  ImageState& state = *image;
  const LayerDirectory& directory = state.layers.directory();
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
    state.space->hold_releases(true);
    const Layer gone = *spent;
    auto collected = state.full_disk.giving_back_by_change([&] { return collect_layer(state, gone, progress); });
    if (collected) continue;
    // One that is damaged, or too large for the disk, does not keep those of other branches from going.
    if (!is_stuck(state, collected.error())) {
      state.space->end_spending();
      return collected;
    }
    if (outcome) outcome = std::move(collected);
    stuck.insert(gone.id);
  }
  state.space->end_spending();
  return outcome ? state.structure.let_go() : outcome;
}

Result<void> finish_deletions(ImageState* image, const std::string& what) {
  ImageState& state = *image;
  auto collected = collect(image, nullptr);
  if (collected || collected.error().code == Code::kCancelled) return collected;
  const Error& why = collected.error();
  const bool damaged = why.code == Code::kCorrupt;
  return Error(
      why.code, why.err,
      state.path + ": " + what +
          " requires that an interrupted deletion of a snapshot is finished first, and this fails: " + why.message +
          (damaged ? ". Write the damaged range again, or remove the checksums (pcow scrub --remove)" : ""));
}

Result<void> leave_unfinished(ImageState* image, const Error& why) {
  if (auto failed = image->file->sync_failure()) return *failed;
  image->failures.note(why);
  return {};
}

Result<void> Image::remove(const std::string& name, const Progress& progress) {
  ImageState& state = *state_;
  return state.structure.change([&]() -> Result<void> {
    const auto layer = state.layers.snapshot_called(name);
    if (!layer) return layer.error();
    const uint64_t id = (*layer)->id;
    PCOW_TRY(state.full_disk.giving_back_by_change([&]() -> Result<void> {
      PreparedStructure prepared;
      prepared.directory = state.layers.directory();
      Layer* hidden = prepared.directory.find(id);
      hidden->hidden = true;
      hidden->automatic = false;
      hidden->name.clear();
      return state.structure.change_to(&prepared);
    }));
    auto collected = collect(&state, progress);
    // What keeps another deletion from being finished is no failure of this one.
    if (!collected && is_stuck(state, collected.error()) && !state.layers.directory().find(id))
      return leave_unfinished(&state, collected.error());
    return collected;
  });
}

}  // namespace pcow
