// What an image has written goes into its base, as a new frozen layer there.
//
// Order (docs/format.md, "What a writer does, in which order"); the image must have no snapshots, which stand on the old layer of the base:
//   1. the image's active layer is frozen, hidden: what is copied does not change any more, and writes go on above it.
//      After a crash it is a deleted snapshot with one child, and is merged back
//   2. its blocks are copied into free space of the base, and a table there that nothing names yet
//   3. all of that is durable; then one superblock of the base names the new layer, and says that it is sealed
//   4. that is durable; then one superblock of the image names the new layer as its base, and a directory with nothing
//      but the active layer
//   5. that is durable; then the blocks of step 1 are released
// A crash after step 3 leaves a snapshot more in the base, and the image as it was. The layer on which the image stood
// stays, and with it every other image on it.

#include <shared_mutex>

#include "engine/image/own_block.h"

namespace pcow {

Result<void> ImageState::freeze_hidden() {
  PCOW_TRY(sync());
  Prepared prepared;
  prepared.directory = directory;
  Layer* frozen = prepared.directory.find(directory.active);
  frozen->hidden = true;
  frozen->time_ns = realtime_ns();
  frozen->identity = random_identity();
  PCOW_TRY(prepare_active(&prepared, frozen->id, frozen->size));
  PCOW_TRY(change_directory(&prepared));
  return seal(space->file_end());
}

// Step 2, on the base: what a frozen layer of `source` holds, into `table`. Nobody else knows that table yet, so no lock is needed.
Result<void> ImageState::copy_layer(ImageState* source, const Layer& from, const std::shared_ptr<Table>& table,
                                    const Progress& progress) {
  const uint64_t entries = geometry.blocks_for(from.size);
  auto present = present_chunks(*source->file, from.table_offset, entries);
  if (!present) return present.error();
  uint64_t total = 0;
  for (const auto& [first, end] : *present) total += (end - first) * kBlocksPerChunk << geometry.block_shift();
  uint64_t done = 0;
  for (const auto& [first, end] : *present) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
      if (progress && !progress(done, total))
        return Error(Code::kCancelled,
                     "the commit was interrupted; " + source->path + " and its base are as they were");
      EntryPage page;
      PCOW_TRY(read_entry_page(*source->file, from.table_offset, entries, chunk, &page));
      for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
        if (page[i] == 0) continue;
        const uint64_t block = chunk * kBlocksPerChunk + i;
        auto checked = checked_entry(page[i], geometry, *source->file, block);
        if (!checked) return checked.error();
        PCOW_TRY(table->ensure(chunk));
        if (!checked->index) {
          make_zero(table.get(), block, {}, checked->written);
          continue;
        }
        const auto copy = [&](uint64_t place) {
          return copy_sub_blocks(place, checked->written, [&](uint32_t within, char* to, uint32_t length) {
            return source->file->read_all((uint64_t{checked->index} << geometry.block_shift()) + within, to, length);
          });
        };
        const auto owned = make_own(table, block, {}, {checked->written, checked->written}, Purpose::kData, copy);
        if (!owned) return owned.error();
      }
      done += uint64_t{kBlocksPerChunk} << geometry.block_shift();
    }
  }
  return {};
}

Result<bool> Image::commit_into(Image* target, const std::string& name, bool automatic, const Progress& progress) {
  ImageState& state = *state_;
  ImageState& base = *target->state_;
  const auto change = [&]() -> Result<bool> {
    if (target == this) return Error(Code::kInvalid, state.path + " cannot be its own base");
    PCOW_TRY(check_snapshot_name(name));
    const std::scoped_lock structure(state.structure, base.structure);
    for (ImageState* one : {&state, &base}) {
      if (one->closed) return one->closed_error();
      if (!one->writable()) return Error(Code::kReadOnly, one->path + " is open for reading only");
    }
    if (!state.superblock.base) return Error(Code::kInvalid, state.path + " has no base to commit to");
    const BaseReference reference = *state.superblock.base;
    // Deletions that were begun come to their end: then the image has one layer only, and the new layer of the base gets no parent
    // that is being merged away.
    PCOW_TRY(base.finish_deletions("a commit"));
    const Layer* stood_on = base.directory.find(reference.layer);
    const bool fits = reference.uuid == base.superblock.uuid && stood_on && stood_on->id != base.directory.active &&
                      (!reference.identity || reference.identity == identity_of(*stood_on, base.superblock.uuid));
    if (!fits) return Error(Code::kBaseChanged, state.path + " does not stand on " + base.path);
    if (base.directory.find(name)) return Error(Code::kExists, base.path + " already has a snapshot called " + name);
    std::string names;
    for (const Layer& layer : state.directory.layers)
      if (!layer.name.empty()) names += (names.empty() ? "" : ", ") + layer.name;
    if (!names.empty())
      return Error(Code::kInUse, state.path + " has snapshots (" + names +
                                     "), which need its base as it is: delete them first, or commit a clone");
    PCOW_TRY(state.finish_deletions("a commit"));
    PCOW_TRY(base.seal(base.space->file_end()));
    PCOW_TRY(state.freeze_hidden());
    const Layer frozen = *state.directory.find(state.directory.active_layer().parent);

    ImageState::Prepared in_base;
    in_base.directory = base.directory;
    Layer added;
    const auto put_into_base = [&]() -> Result<bool> {
      added.id = in_base.directory.next_id++;
      added.parent = reference.layer;
      added.name = name;
      added.automatic = automatic;
      added.time_ns = realtime_ns();
      added.identity = random_identity();
      added.size = frozen.size;
      added.table_length = base.geometry.table_length(added.size);
      auto first = base.space->allocate_range(added.table_length >> base.geometry.block_shift());
      if (!first) return first.error();
      added.table_offset = *first << base.geometry.block_shift();
      auto table = Table::map(base.file, added.table_offset, base.geometry.blocks_for(added.size), true);
      if (!table) return table.error();
      PCOW_TRY(base.copy_layer(&state, frozen, *table, progress));

      // The ids of frozen layers stay smaller than the active one's: that one gets a new id, and where it holds nothing
      // and stands where the image stood, the base's own content goes along.
      auto empty = base.active_is_empty();
      if (!empty) return empty.error();
      const Layer active = base.directory.active_layer();
      const bool follows = *empty && active.parent == reference.layer && active.size <= added.size;
      in_base.directory.erase(active.id);
      in_base.directory.layers.push_back(added);
      if (follows) {
        PCOW_TRY(base.prepare_active(&in_base, added.id, added.size));
      } else {
        Layer renewed = active;
        renewed.id = in_base.directory.next_id++;
        in_base.directory.active = renewed.id;
        in_base.directory.layers.push_back(std::move(renewed));
      }
      in_base.heir = added.id;
      in_base.heir_source = base.source_of(added, (*table)->present());
      in_base.sealed = added.id;
      PCOW_TRY(base.change_directory(&in_base));
      if (follows) {
        base.content_generation++;
        PCOW_TRY(base.release_layer(active, nullptr));
      }
      return follows;
    };
    auto follows = put_into_base();
    if (!follows) {
      if (!base.directory.find(added.id) && added.table_offset) PCOW_TRY(base.release_layer(added, nullptr));
      PCOW_TRY(state.collect(nullptr));
      return follows;
    }

    const auto stand_on_it = [&]() -> Result<void> {
      ImageState::Prepared prepared;
      prepared.directory = state.directory;
      prepared.directory.erase(frozen.id);
      prepared.directory.find(state.directory.active)->parent = 0;
      prepared.rebased = true;
      prepared.base = reference;
      prepared.base->layer = added.id;
      prepared.base->identity = added.identity;
      auto bases = state.open_chain(prepared.base, {});
      if (!bases) return bases.error();
      prepared.bases = std::move(*bases);
      return state.change_directory(&prepared);
    };
    if (auto stands = stand_on_it(); !stands) {
      // The base has a snapshot more; the image is as it was once it has its layer back.
      if (state.directory.find(frozen.id)) PCOW_TRY(state.collect(nullptr));
      return stands.error();
    }
    PCOW_TRY(state.release_layer(frozen, nullptr));
    if (progress) progress(1, 1);
    return follows;
  };
  return state.noted(change());
}

}  // namespace pcow
