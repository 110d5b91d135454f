// Changes of structure: what all of them share, and rollback, resize, another base.
//
// Order of every such change (docs/format.md, "What a writer does, in which order"):
//   1. the new directory (and a new, empty table) is written to free space, and made durable
//   2. with the gate held exclusively, the superblock's other slot is written: this is the moment
//   3. fdatasync; only then is the old directory's place, and what the old structure alone used, released
// A crash before the slot is on the disk leaves the old structure untouched.

#include <algorithm>
#include <shared_mutex>

#include "engine/image/base.h"
#include "engine/image/own_block.h"

namespace pcow {
Result<void> ImageState::prepare_directory(Prepared* prepared, Reach reach) {
  if (prepared->directory.layers.size() > kMaxLayers)
    return Error(Code::kLimit, path + " has the most layers that an image can have (" + std::to_string(kMaxLayers) +
                                   "): delete snapshots first");
  const std::vector<uint8_t> bytes = prepared->directory.encode(superblock.uuid);
  const uint64_t blocks = geometry.blocks_for(bytes.size());
  auto first = space->allocate_range(blocks);
  if (!first) return first.error();
  prepared->offset = *first << geometry.block_shift();
  prepared->length = bytes.size();
  auto written = file->write(prepared->offset, bytes.data(), bytes.size());
  if (written && keeps(Rule::kDirectoryBeforeSuperblock))
    written = reach == Reach::kFile ? file->sync() : file->sync_stored(prepared->offset, prepared->length);
  if (!written) {
    space->release(*first, blocks);
    prepared->length = 0;
  }
  return written;
}

Result<void> ImageState::prepare_active(Prepared* prepared, uint64_t parent, uint64_t size) {
  Layer layer;
  layer.id = prepared->directory.next_id++;
  layer.parent = parent;
  layer.time_ns = realtime_ns();
  layer.size = size;
  layer.table_length = geometry.table_length(size);
  const uint64_t blocks = layer.table_length >> geometry.block_shift();
  auto first = space->allocate_range(blocks);
  if (!first) return first.error();
  layer.table_offset = *first << geometry.block_shift();
  auto table = Table::map(file, layer.table_offset, geometry.blocks_for(size), true);
  if (!table) {
    space->release(*first, blocks);
    return table.error();
  }
  (*table)->expect_nothing();
  prepared->table = std::move(*table);
  prepared->directory.active = layer.id;
  prepared->directory.layers.push_back(std::move(layer));
  return {};
}

void ImageState::abandon(const Prepared& prepared) {
  if (doubt) {
    leaks = true;  // the disk may name it
    return;
  }
  if (prepared.length) space->release(prepared.offset >> geometry.block_shift(), geometry.blocks_for(prepared.length));
  if (prepared.table) {
    const Layer& layer = prepared.directory.active_layer();
    space->release(layer.table_offset >> geometry.block_shift(), layer.table_length >> geometry.block_shift());
  }
}

// Whoever watches may have seen a generation that we have only begun to write, so none is given twice. The one that follows is of the other
// slot, but of the same where the last was not written.
Superblock ImageState::next_superblock() {
  Superblock next = superblock;
  next.generation = std::max(superblock.generation, last_generation) + (doubt ? 2 : 1);
  last_generation = next.generation;
  next.reserve = space->reserve().first;
  next.reserve_blocks = space->reserve().blocks;
  return next;
}

// A write that fails may have been done, in part or as a whole: readers may have seen what it says, and a crash would make it count. So
// the superblock that we go on with is written over it.
Result<void> ImageState::put_superblock(const Superblock& next) {
  auto outcome = write_superblock(*file, next);
  doubt = outcome ? 0 : outcome.error().err;
  if (!outcome) (void)settle();
  return outcome;
}

Result<void> ImageState::settle() {
  const Superblock again = next_superblock();
  auto outcome = write_superblock(*file, again);
  doubt = outcome ? 0 : outcome.error().err;
  return outcome;
}

Result<void> ImageState::check_settled() const {
  if (const int err = doubt)
    return Error(
        Code::kIo, err,
        path + ": a change failed, and whether it is on the disk is not known; nothing is durable before it is");
  return {};
}

Result<void> ImageState::commit(Prepared* prepared) {
  Superblock next = next_superblock();
  next.directory_offset = prepared->offset;
  next.directory_length = prepared->length;
  next.read_only_compatible = (next.read_only_compatible & ~kLayerChecksums) | prepared->directory.features();
  if (prepared->sealed) next.sealed = *prepared->sealed;
  if (prepared->rebased) next.base = prepared->base;
  PCOW_TRY(put_superblock(next));
  space->release(superblock.directory_offset >> geometry.block_shift(),
                 geometry.blocks_for(superblock.directory_length));
  superblock = next;
  owing = false;

  // Chains that already exist stay right as long as no layer has gone, or has other checksums. One that is hidden goes already now for those who
  // read it: the merge that follows lets its heir write into its blocks.
  const bool gone = std::any_of(directory.layers.begin(), directory.layers.end(), [&](const Layer& layer) {
    const Layer* after = prepared->directory.find(layer.id);
    return !after || after->hidden != layer.hidden || after->checksums != layer.checksums;
  });
  Chain::Sources kept;
  for (const Layer& layer : prepared->directory.layers) {
    if (layer.id == prepared->directory.active) {
      kept.push_back(nullptr);  // read through its table, not through a chain
    } else if (layer.id == prepared->heir) {
      kept.push_back(prepared->heir_source);
    } else if (layer.id == directory.active) {
      kept.push_back(source_of(layer, active->present()));  // has just been frozen
    } else if (directory.find(layer.id)->checksums != layer.checksums) {
      kept.push_back(source_of(layer, source_in_use(layer.id)->present));
    } else {
      kept.push_back(source_in_use(layer.id));
    }
  }
  directory = std::move(prepared->directory);
  sources = std::move(kept);
  if (prepared->table) active = prepared->table;
  if (prepared->rebased) adopt_bases(std::move(prepared->bases));
  const bool anew = gone || prepared->rebased;
  if (anew) epoch++;
  below = chain_from(directory.active_layer().parent, anew ? nullptr : std::move(below));
  return {};
}

std::shared_ptr<const Source> ImageState::source_of(const Layer& layer, std::vector<ChunkRange> present) const {
  return make_source(file, geometry, layer, crashed, std::move(present));
}

const std::shared_ptr<const Source>& ImageState::source_in_use(uint64_t layer) const {
  return sources[static_cast<size_t>(directory.find(layer) - directory.layers.data())];
}

std::shared_ptr<const Chain> ImageState::chain_from(uint64_t layer, std::shared_ptr<const Chain> continued) const {
  Chain::Sources chain;
  while (layer) {
    chain.push_back(source_in_use(layer));
    layer = directory.find(layer)->parent;
  }
  chain.insert(chain.end(), base_sources.begin(), base_sources.end());
  return std::make_shared<Chain>(geometry, std::move(chain), std::move(continued));
}

Result<std::shared_ptr<const Chain>> ImageState::chain_of(const View& view) const {
  const std::lock_guard lock(view.mutex_);
  if (view.chain_ && view.epoch_ == epoch) return view.chain_;
  auto layer = layer_in_view(view);
  if (!layer) return layer.error();
  view.chain_ = chain_from(view.layer_);
  view.epoch_ = epoch;
  return view.chain_;
}

// A deleted layer with one child may be merged into it at any time: the child's writes go into its blocks then. With several it
// only stands there.
bool ImageState::is_readable(const Layer& layer, bool by_name) const {
  return !layer.hidden || (!by_name && directory.count_children(layer.id) > 1);
}

Result<const Layer*> ImageState::layer_in_view(const View& view) const {
  const Layer* layer = directory.find(view.layer());
  if (!layer || !is_readable(*layer, view.by_name()))
    return Error(Code::kNotFound,
                 path + (view.by_name() ? ": that snapshot has been deleted"
                                        : ": the layer that is read is there no more: its snapshot was "
                                          "deleted, or the image rolled back or committed"));
  if (layer->size < view.size()) return Error(Code::kBusy, path + " became smaller while it was read");
  return layer;
}

// Every layer frozen so far is made durable, and said to be: from then on a crash takes nothing from it. `end`: where the file ended when
// the newest of them was frozen, or later.
Result<void> ImageState::seal(uint64_t end) {
  if (keeps(Rule::kDurableBeforeSeal)) PCOW_TRY(sync_frozen(end));
  uint64_t newest = 0;
  for (const Layer& layer : directory.layers)
    if (layer.id != directory.active) newest = std::max(newest, layer.id);
  if (newest <= superblock.sealed) return {};
  Superblock next = next_superblock();
  next.sealed = newest;
  PCOW_TRY(put_superblock(next));
  {
    const std::unique_lock lock(gate);
    superblock = next;
  }
  return keeps(Rule::kSealBeforeReturn) ? sync_superblock(*file) : Result<void>();
}

Result<void> ImageState::change_directory(Prepared* prepared) {
  if (auto ready = prepare_directory(prepared, Reach::kFile); !ready) {
    abandon(*prepared);
    return ready;
  }
  {
    // A dropped table must not be stored into any more by a sync under way.
    const std::lock_guard no_sync(syncing);
    const std::unique_lock lock(gate);
    const std::shared_ptr<Table> before = active;
    const uint64_t active_before = directory.active;
    if (auto done = commit(prepared); !done) {
      abandon(*prepared);
      return done;
    }
    if (active != before && !directory.find(active_before)) forget_unsynced(*before);
  }
  auto outcome = keeps(Rule::kSuperblockBeforeReturn) ? sync() : Result<void>();
  // The change has happened, and its caller will not release what only the old structure used.
  if (!outcome) leaks = true;
  return outcome;
}

Result<bool> ImageState::active_is_empty() const {
  for (uint64_t chunk = 0; chunk < active->chunks(); chunk++) {
    if (!active->may_hold(chunk)) continue;
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, active->entries());
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++)
      if (active->load(block)) return false;
  }
  return true;
}

Result<uint64_t> Image::layer_id(const std::string& snapshot) const {
  if (state_->is_stale()) PCOW_TRY(state_->refresh());
  const std::shared_lock lock(state_->gate);
  if (snapshot.empty()) return state_->directory.active;
  const auto layer = state_->snapshot_called(snapshot);
  if (!layer) return layer.error();
  return (*layer)->id;
}

Result<void> Image::rollback(const std::string& name) {
  ImageState& state = *state_;
  return state.change_structure([&]() -> Result<void> {
    const auto target = state.snapshot_called(name);
    if (!target) return target.error();
    const Layer gone = state.directory.active_layer();
    const Layer stood_on = **target;
    PCOW_TRY(state.giving_back_by_change([&]() -> Result<void> {
      ImageState::Prepared prepared;
      prepared.directory = state.directory;
      prepared.directory.erase(gone.id);
      PCOW_TRY(state.prepare_active(&prepared, stood_on.id, stood_on.size));
      return state.change_directory(&prepared);
    }));
    state.content_generation++;
    PCOW_TRY(state.release_layer(gone, nullptr));
    // The image is back at the snapshot, whatever keeps an earlier deletion from being finished.
    if (auto collected = state.collect(nullptr); !collected) return state.leave_unfinished(collected.error());
    return {};
  });
}

// The active layer's entries, as far as an image of `size` bytes has them, into another table. What the last block holds
// behind the end is left behind: should the image grow again, there are zeros. With the gate held exclusively.
Result<void> ImageState::copy_entries(const std::shared_ptr<Table>& table, uint64_t size) {
  const uint64_t last = (size - 1) >> geometry.block_shift();
  const auto tail = static_cast<uint32_t>(size - (last << geometry.block_shift()));  // bytes of the last block
  for (uint64_t chunk = 0; chunk < std::min(active->chunks(), table->chunks()); chunk++) {
    if (!active->may_hold(chunk)) continue;
    PCOW_TRY(table->ensure(chunk));
    const uint64_t end = std::min({(chunk + 1) * kBlocksPerChunk, active->entries(), table->entries()});
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      Entry entry = Entry::unpack(active->load(block));
      if (block == last && size < directory.active_layer().size) {
        entry.written &= geometry.touched_mask(0, tail);
        entry.durable &= entry.written;
        const uint32_t torn = tail >> geometry.sub_block_shift();  // a sub-block that ends behind the image
        if (entry.empty()) {
          entry = {};
        } else if (entry.index && tail % geometry.sub_block_size() && (entry.written >> torn & 1)) {
          // Not in place: until the superblock names the new table, the old end counts.
          std::vector<char> bytes(tail);
          PCOW_TRY(file->read_all(uint64_t{entry.index} << geometry.block_shift(), bytes.data(), tail));
          const auto owned = make_own(table, block, {}, {entry.written, entry.durable}, Purpose::kGivingBack,
                                      [&](uint64_t place) { return file->write(place, bytes.data(), tail); });
          if (!owned) return owned.error();
          continue;
        }
      }
      table->store(block, entry);
    }
  }
  return {};
}

// The blocks of the active layer that another table for it has left out. With the gate held exclusively: afterwards a discard
// may let go of any of those that it has taken.
std::vector<uint32_t> ImageState::left_out_by(const Table& table) const {
  std::vector<uint32_t> left_out;
  for (uint64_t chunk = 0; chunk < active->chunks(); chunk++) {
    if (!active->may_hold(chunk)) continue;
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, active->entries());
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      const uint32_t index = Entry::unpack(active->load(block)).index;
      const bool taken = block < table.entries() && Entry::unpack(table.load(block)).index == index;
      if (index && !taken) left_out.push_back(index);
    }
  }
  return left_out;
}

Result<void> Image::resize(uint64_t size, bool shrink) {
  ImageState& state = *state_;
  const auto change = [&]() -> Result<void> {
    const Layer before = state.directory.active_layer();
    if (size % kPageSize) return Error(Code::kInvalid, "an image's size is a multiple of 4096 bytes");
    if (size < before.size && !shrink)
      return Error(Code::kInvalid,
                   state.path + " has " + std::to_string(before.size) +
                       " bytes; pcow resize --shrink makes it smaller, and what lies behind the new end is lost");
    if (size < kMinImageSize)
      return Error(Code::kInvalid, "an image has at least " + std::to_string(kMinImageSize) + " bytes");
    const Layer* parent = state.directory.find(before.parent);
    const uint64_t least = parent ? parent->size : state.base_size;
    if (size < least)
      return Error(Code::kInvalid, state.path + " can't have less than " + std::to_string(least) + " bytes, which " +
                                       (parent ? parent->name.empty() ? "a deleted snapshot that it stands on"
                                                                      : "its snapshot " + parent->name
                                               : "its base") +
                                       " has: an image is never smaller than what it stands on");
    if (size > state.geometry.max_image_size())
      return Error(Code::kTooLarge, "an image with blocks of " + std::to_string(state.geometry.block_size()) +
                                        " bytes has at most " + std::to_string(state.geometry.max_image_size()) +
                                        " bytes");
    if (size == before.size) return {};
    ImageState::Prepared prepared;
    prepared.directory = state.directory;
    Layer* layer = prepared.directory.find(before.id);
    layer->size = size;
    layer->table_length = state.geometry.table_length(size);
    const uint64_t blocks = layer->table_length >> state.geometry.block_shift();
    auto first = state.space->allocate_range(blocks);
    if (!first) return first.error();
    layer->table_offset = *first << state.geometry.block_shift();
    auto table = Table::map(state.file, layer->table_offset, state.geometry.blocks_for(size), true);
    if (!table) {
      state.space->release(*first, blocks);
      return table.error();
    }
    prepared.table = *table;
    std::vector<uint32_t> left_out;
    if (auto ready = state.prepare_directory(&prepared, ImageState::Reach::kFile); !ready) {
      state.abandon(prepared);
      return ready;
    }
    {
      // The entries move to another table. They must be there, durably, before the superblock says so.
      const std::lock_guard no_sync(state.syncing);
      const std::unique_lock lock(state.gate);
      Result<void> outcome = state.copy_entries(prepared.table, size);
      for (uint64_t chunk = 0; chunk < prepared.table->chunks(); chunk++)
        if (prepared.table->may_hold(chunk)) state.mark_unsynced(prepared.table, chunk);
      if (outcome && keeps(Rule::kLongerTableBeforeSuperblock)) outcome = state.file->sync();
      const std::shared_ptr<Table> old = state.active;
      if (size < before.size) left_out = state.left_out_by(*prepared.table);
      if (outcome) outcome = state.commit(&prepared);
      if (!outcome) {
        state.forget_unsynced(*prepared.table);
        // The one block that copy_entries() may have taken.
        const uint64_t last = prepared.table->entries() - 1;
        const uint32_t taken = Entry::unpack(prepared.table->load(last)).index;
        if (taken && taken != Entry::unpack(last < old->entries() ? old->load(last) : 0).index)
          state.space->release(taken, 1);
        state.abandon(prepared);
        return outcome;
      }
      state.forget_unsynced(*old);
      if (size < before.size) state.content_generation++;
    }
    if (auto synced = state.sync(); !synced) {
      state.leaks = true;
      return synced;
    }
    for (const uint32_t index : left_out) state.space->release(index, 1);
    state.space->release(before.table_offset >> state.geometry.block_shift(),
                         before.table_length >> state.geometry.block_shift());
    return {};
  };
  return state.change_structure([&]() -> Result<void> {
    if (!shrink) return change();
    // A snapshot whose deletion was interrupted does not stand in the way.
    PCOW_TRY(state.finish_deletions("making it smaller"));
    return state.giving_back_by_change(change);
  });
}

// What a base reference to `spec` is to say; refused where this image cannot stand on it.
Result<BaseReference> ImageState::reference_to(const BaseSpec& spec) const {
  auto found = find_base(path, spec);
  if (!found) return found.error();
  if (found->block_size != geometry.block_size())
    return Error(Code::kInvalid, spec.path + " has blocks of " + std::to_string(found->block_size) + " bytes, " + path +
                                     " of " + std::to_string(geometry.block_size()) +
                                     ": an image and its base have the same block size");
  for (const Layer& layer : directory.layers)
    if (layer.parent == 0 && layer.size < found->size)
      return Error(Code::kInvalid, spec.path + " (" + std::to_string(found->size) + " bytes) is larger than " +
                                       (layer.id == directory.active ? "" : "snapshot " + layer.name + " of ") + path +
                                       " (" + std::to_string(layer.size) + " bytes): a base can't be");
  return std::move(found->reference);
}

// Whether a reference leads to the same content as the other, as far as the two say: it was moved, or copied.
static bool same_content(const std::optional<BaseReference>& one, const BaseReference& other) {
  if (!one) return false;
  if (one->identity && other.identity) return one->identity == other.identity;
  return one->uuid == other.uuid && one->layer == other.layer;
}

Result<void> Image::set_base(const BaseSpec& spec, bool has_base) {
  ImageState& state = *state_;
  return state.change_structure([&]() -> Result<void> {
    ImageState::Prepared prepared;
    prepared.rebased = true;
    if (has_base) {
      auto reference = state.reference_to(spec);
      if (!reference) return reference.error();
      prepared.base = std::move(*reference);
    }
    // The new chain is opened before anything is written: a base that cannot be read is refused.
    auto bases = state.open_chain(prepared.base, {});
    if (!bases) return bases.error();
    if (prepared.base ? same_content(state.superblock.base, *prepared.base) : !state.superblock.base) {
      const std::unique_lock lock(state.gate);
      Superblock next = state.next_superblock();
      next.base = std::move(prepared.base);
      PCOW_TRY(state.put_superblock(next));
      state.superblock = next;
      state.adopt_bases(std::move(*bases));
      state.epoch++;
      state.content_generation++;
      state.below = state.chain_from(state.directory.active_layer().parent);
      return state.file->sync();
    }
    // Frozen layers may read otherwise from then on: in the same step as the base, each gets an identity of its own, so that
    // nobody takes its content for what it was.
    prepared.bases = std::move(*bases);
    prepared.directory = state.directory;
    for (Layer& layer : prepared.directory.layers)
      if (layer.id != prepared.directory.active) layer.identity = random_identity();
    PCOW_TRY(state.change_directory(&prepared));
    state.content_generation++;
    return {};
  });
}

}  // namespace pcow
