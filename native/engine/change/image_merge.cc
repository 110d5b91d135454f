// Deleting snapshots.
//
// A layer is deleted by being hidden, with one change of the layer directory. If it has no
// children, it is then dropped. If it has a single child, it is merged into that child, its heir,
// and then dropped:
//   0. For sixteen chunks at a time, what is to be handed over is verified, and the parent's
//      checksums of it are taken away durably.
//   1. Entry by entry, under the chunk's lock, the heir takes what it does not hold itself: the
//      parent's whole block if the heir has none (the entry is moved with one store), otherwise
//      copies of the sub-blocks.
//   2. A sync makes the heir's entries and copies durable.
//   3. The flip to a layer directory without the parent.
//   4. The blocks that the heir did not take are released.
// Entries are taken out of the parent's table only on a full disk, and only if the heir holds
// durably what they say: hand_over(). So after a crash at any point the merge starts again, and the
// heir already holds what it has taken.
// Until step 4 both tables may name the same block. Blocks that the heir releases meanwhile are
// held back (Space).
//
// Which layer may write into a block that two tables name? Only the heir, because it alone still
// needs the content. A merge writes into blocks of its heir, so nothing is ever merged *into* a
// layer that is to be merged away itself: some of the blocks that such a layer names may already
// belong to its own child. If hidden layers stand on each other, the one nearest to the active
// layer is merged first. If it cannot be finished (a damaged block, a full disk), it stays, and so
// do those below it; other branches continue. If a snapshot is deleted into which an unfinished
// merge has already moved blocks, three tables may name one block. What the nearest of them holds
// hides all that the other two hold, and the block is released with the last of them.

#include <algorithm>
#include <bit>
#include <set>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

constexpr uint64_t kChunksAtOnce = 16;  // chunks whose checksums one sync takes away

// Whether this error keeps one deletion from being finished, but not the others.
bool is_stuck(const ImageState& state, const Error& why) {
  return (why.code == Code::kCorrupt && !state.file->sync_failure()) || why.code == Code::kRemote ||
         state.full_disk.is_full(why);
}

// Hidden layers that may name the same blocks as `layer`, because a merge of them was begun and not
// finished.
std::vector<Layer> hidden_ancestors(const ImageState& state, const Layer& layer) {
  const LayerDirectory& directory = state.layers.directory();
  std::vector<Layer> hidden;
  for (const Layer* at = directory.find(layer.parent); at && at->hidden;
       at = directory.find(at->parent))
    hidden.push_back(*at);
  return hidden;
}

// The blocks that a layer names in a chunk; 0 instead of a block that one of `others` names as
// well.
Result<std::array<uint32_t, kBlocksPerChunk>> unnamed_blocks(const ImageState& state,
                                                             const Layer& layer,
                                                             const std::vector<Layer>& others,
                                                             uint64_t chunk) {
  std::array<uint32_t, kBlocksPerChunk> unnamed;
  EntryPage page;
  PCOW_TRY(read_entry_page(*state.file, layer.table_offset, state.geometry.blocks_for(layer.size),
                           chunk, &page));
  std::transform(page.begin(), page.end(), unnamed.begin(),
                 [](uint64_t word) { return Entry::unpack(word).index; });
  for (const Layer& other : others) {
    if (chunk >= state.geometry.chunks_for(other.size)) continue;
    PCOW_TRY(read_entry_page(*state.file, other.table_offset, state.geometry.blocks_for(other.size),
                             chunk, &page));
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
    auto present = present_chunks(*state_.file, parent_.table_offset,
                                  state_.geometry.blocks_for(parent_.size));
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

  // Before the heir takes anything over from these chunks: verifies what it will take, because the
  // heir has no checksums for it. Then takes the parent's checksums of these chunks away, durably,
  // before the heir can write into a block that it has taken over. After a crash such a block may
  // hold what the heir has written although the heir's table does not name it yet, and a read
  // through the parent must not report that as damage. `*end` becomes the first chunk that must not
  // be taken over, because it is damaged.
  Result<void> give_up_checksums(uint64_t first, uint64_t* end) {
    const std::shared_ptr<const Checksums> checksums =
        state_.layers.source_in_use(parent_.id)->checksums;
    if (!checksums) return {};
    const uint64_t entries = state_.geometry.blocks_for(parent_.size);
    const auto verify_chunk = [&](uint64_t chunk) -> Result<void> {
      EntryPage page;
      PCOW_TRY(read_entry_page(*state_.file, parent_.table_offset, entries, chunk, &page));
      for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
        const uint64_t block = chunk * kBlocksPerChunk + i;
        const Entry lower = Entry::unpack(page[i]);
        // The heir never loses anything that it holds while the merge is running.
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
    PCOW_TRY(state_.file->punch(
        (uint64_t{parent_.checksums} << state_.geometry.block_shift()) + first * kPageSize,
        (chunk - first) * kPageSize));
    PCOW_TRY(state_.file->sync());
    // A barrier: no reader is still comparing with the checksums that were there.
    const std::unique_lock barrier(state_.gate);
    checksums->forget(first, chunk);
    return outcome;
  }

  // The heir takes over what it does not hold of a chunk. All blocks before `*taken` are done, also
  // after an error.
  Result<void> merge_chunk(uint64_t chunk, uint64_t* taken) {
    EntryPage page;
    *taken = chunk * kBlocksPerChunk;
    PCOW_TRY(read_entry_page(*state_.file, parent_.table_offset,
                             state_.geometry.blocks_for(parent_.size), chunk, &page));
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
      // Remote bytes belong to the layer for which the source names them. Only the active layer of a
      // draft has no identity yet: it takes back what a snapshot that was not sealed has frozen.
      if (entry.remote || (lower.remote && !(entry.empty() && heir_is_active())))
        return remote_error(*state_.file, state_.superblocks.current().uuid,
                            entry.remote ? child_.id : parent_.id, block);
      if (entry.empty()) {
        heir_->store(block, lower);
        // Mark at once: a merge that continues an interrupted one does not look again at what that
        // one stored.
        state_.durability.mark(heir_, chunk);
      } else if (!lower.index && !entry.index) {
        state_.own_blocks.make_zero(heir_.get(), block, entry, missing);
      } else {
        const auto copy = [&](uint64_t block_offset) {
          return state_.own_blocks.copy_sub_blocks(
              block_offset, missing,
              [&](uint32_t within, char* to, uint32_t length) -> Result<void> {
                if (lower.index)
                  return state_.file->read_all(
                      (uint64_t{lower.index} << state_.geometry.block_shift()) + within, to,
                      length);
                std::fill_n(to, length, 0);
                return {};
              });
        };
        const auto owned = state_.own_blocks.make_own(heir_, block, entry, {missing},
                                                      OwnBlocks::Purpose::kGivingBack, copy);
        if (!owned) return owned.error();
      }
    }
    return {};
  }

  // Merges chunks [first, end); the heir holds all chunks before them. If the disk is full, entries
  // that the heir holds durably are taken out of the parent, to make space for the rest. If there
  // are none yet, the reserve is spent.
  Result<void> merge_chunks(uint64_t first, uint64_t end,
                            const std::function<bool(uint64_t chunk)>& go_on) {
    for (uint64_t chunk = first; chunk < end;) {
      if (!go_on(chunk))
        return Error(Code::kCancelled, "the deletion was interrupted; it is finished when " +
                                           state_.path +
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

  // From here on every reader finds in the heir what it has taken over. The superblock gets the
  // next generation, so that readers in other processes load the tables again.
  Result<void> show_heir() {
    const std::unique_lock lock(state_.gate);
    PCOW_TRY(state_.superblocks.renew());
    if (!heir_is_active()) state_.layers.adopt_chunks(child_, heir_->present());
    state_.layers.set_handing_over(true);
    state_.layers.renew_chains();
    return {};
  }

  // Takes out of the parent what its heir holds durably of the blocks before `end`, all of which
  // the heir has taken. Returns false if there was nothing to take out.
  //   1. Sync: what the heir has taken is durable. (Other blocks that it holds may be *zero here*
  //      only since a discard that no sync has covered yet.)
  //   2. From here on no reader looks for it in the parent.
  //   3. The parent's entries are emptied, pages without an entry are punched, and blocks that no
  //      table names any more are released.
  //   4. Sync: that is durable, and the blocks are given back to the disk.
  // After a crash before 4 any of these entries may still be there; the heir holds what they say.
  // There is one exception: a discard, which would leave an empty entry in the heir if no lower
  // layer holds anything, must leave *zero here* until step 4 is done (Layers::set_handing_over()).
  Result<bool> hand_over(uint64_t end) {
    if (keeps(Rule::kHeirBeforeHandingOver)) PCOW_TRY(state_.durability.sync());
    PCOW_TRY(show_heir());
    auto table = Table::map(state_.file, parent_.table_offset,
                            state_.geometry.blocks_for(parent_.size), true);
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
      for (uint64_t i = 0; i < kBlocksPerChunk && chunk * kBlocksPerChunk + i < (*table)->entries();
           i++) {
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
  const std::shared_ptr<Table> heir_;  // the heir's table
};

Result<void> merge(ImageState& state, const Layer& parent, const Layer& child,
                   const Progress& progress) {
  std::shared_ptr<Table> table = state.layers.active();
  if (child.id != state.layers.directory().active) {
    auto mapped =
        Table::map(state.file, child.table_offset, state.geometry.blocks_for(child.size), true);
    if (!mapped) return mapped.error();
    table = std::move(*mapped);
  }
  return Merge(&state, parent, child, std::move(table)).run(progress);
}

// Drops a hidden layer without children, or merges it into its only child.
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

// Before a snapshot is deleted: a merge would need the bytes that are remote in it or in its heir.
Result<void> check_mergeable(const ImageState& state, const Layer& layer) {
  const LayerDirectory& directory = state.layers.directory();
  const uint64_t children = directory.count_children(layer.id);
  if (!state.layers.is_lazy() || children == 0) return {};
  const auto must_be_here = [&](const Layer& one) -> Result<void> {
    auto count = count_remote(state, one);
    if (!count) return count.error();
    if (!*count) return {};
    return Error(Code::kRemote, state.path + ": snapshot " + layer.name +
                                    " cannot be deleted before all bytes of " +
                                    (one.id == layer.id ? "it" : "the snapshot after it") +
                                    " have been fetched (pcow prefetch)");
  };
  PCOW_TRY(must_be_here(layer));
  for (const Layer& other : directory.layers)
    if (children == 1 && other.parent == layer.id) PCOW_TRY(must_be_here(other));
  return {};
}

}  // namespace

Result<void> release_layer(ImageState* image, const Layer& gone, const Layer* heir) {
  ImageState& state = *image;
  std::vector<Layer> others = hidden_ancestors(state, gone);
  if (heir) others.push_back(*heir);
  const auto release = [&]() -> Result<void> {
    auto present =
        present_chunks(*state.file, gone.table_offset, state.geometry.blocks_for(gone.size));
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
    if (gone.checksums)
      state.space->release(gone.checksums, gone.table_length >> state.geometry.block_shift());
    return {};
  };
  auto released = release();
  // These blocks are neither in use nor on their way to a hole: only an opener that finds the image
  // unclean punches them.
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
                          [&](const Layer& other) {
                            return other.parent == layer.id && directory.is_spent(other);
                          });
    };
    const auto spent = std::find_if(directory.layers.begin(), directory.layers.end(), may_go);
    if (spent == directory.layers.end()) break;
    // Hold back releases for all waiting merges: the heir of any of them may have begun to take
    // blocks over.
    state.space->hold_releases(true);
    const Layer gone = *spent;
    auto collected =
        state.full_disk.giving_back_by_change([&] { return collect_layer(state, gone, progress); });
    if (collected) continue;
    // A layer that is damaged, or too large for the disk, does not keep layers of other branches
    // from being deleted.
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
          " requires that an interrupted deletion of a snapshot is finished first, and this "
          "fails: " +
          why.message +
          (damaged
               ? ". Write the damaged range again, or remove the checksums (pcow scrub --remove)"
               : ""));
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
    PCOW_TRY(check_mergeable(state, **layer));
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
    // This deletion is done: what keeps another deletion from being finished is not its failure.
    if (!collected && is_stuck(state, collected.error()) && !state.layers.directory().find(id))
      return leave_unfinished(&state, collected.error());
    return collected;
  });
}

}  // namespace pcow
