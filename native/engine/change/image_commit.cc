// Commit to a base: what an image has written becomes a new frozen layer of its base.
//
// Order (docs/format.md, "What a writer does, in which order"). The image must have no snapshots,
// because these stand on the old layer of the base.
//   1. The image's active layer is frozen and hidden: what is copied no longer changes, and writes
//      go to the layer above it. After a crash it is a deleted snapshot with one child, and is
//      merged back.
//   2. Its blocks are copied into free space of the base, and their entries into a table there that
//      nothing names yet.
//   3. All of that becomes durable. Then one superblock of the base names the new layer, and says
//      that it is sealed.
//   4. That becomes durable. Then one superblock of the image names the new layer as its base, and
//      a layer directory that has only the active layer.
//   5. That becomes durable. Then the blocks of step 1 are released.
// After a crash that follows step 3, the base has one snapshot more, and the image is as it was.
// The layer on which the image stood stays, and so does every other image on it.

#include <shared_mutex>

#include "engine/image/clock.h"
#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// One commit. The caller holds `structure` of both images.
class CommitToBase {
 public:
  CommitToBase(ImageState* image, ImageState* base, const std::string& name, bool automatic,
               const Progress& progress)
      : image_(*image), base_(*base), name_(name), automatic_(automatic), progress_(progress) {}

  // Returns whether the base's own content changed as well (commit_into() in image.h).
  Result<bool> run() {
    PCOW_TRY(check());
    PCOW_TRY(finish_deletions(&image_, "a commit"));
    PCOW_TRY(base_.structure.seal());
    PCOW_TRY(freeze_hidden());
    frozen_ = *image_.layers.directory().find(image_.layers.active_layer().parent);
    auto follows = put_into_base();
    if (!follows) {
      if (!base_.layers.directory().find(added_.id) && added_.table_offset)
        PCOW_TRY(release_layer(&base_, added_, nullptr));
      PCOW_TRY(collect(&image_, nullptr));
      return follows;
    }
    if (auto stands = stand_on_it(); !stands) {
      // The base has one snapshot more. The image is as it was when its hidden layer has been
      // merged back.
      if (image_.layers.directory().find(frozen_.id)) PCOW_TRY(collect(&image_, nullptr));
      return stands.error();
    }
    PCOW_TRY(release_layer(&image_, frozen_, nullptr));
    if (progress_) progress_(1, 1);
    return follows;
  }

 private:
  Result<void> check() {
    for (const ImageState* one : {&image_, &base_}) PCOW_TRY(one->structure.check_changeable());
    if (!image_.superblocks.current().base)
      return Error(Code::kInvalid, image_.path + " has no base to commit to");
    reference_ = *image_.superblocks.current().base;
    // Finish interrupted deletions first: then the image has only one layer, and the parent of the
    // base's new layer is not one that is being merged away.
    PCOW_TRY(finish_deletions(&base_, "a commit"));
    const LayerDirectory& directory = base_.layers.directory();
    const Uuid& uuid = base_.superblocks.current().uuid;
    const Layer* stood_on = directory.find(reference_.layer);
    const bool fits = reference_.uuid == uuid && stood_on && stood_on->id != directory.active &&
                      (!reference_.identity || reference_.identity == identity_of(*stood_on, uuid));
    if (!fits) return Error(Code::kBaseChanged, image_.path + " does not stand on " + base_.path);
    if (directory.find(name_))
      return Error(Code::kExists, base_.path + " already has a snapshot named " + name_);
    std::string names;
    for (const Layer& layer : image_.layers.directory().layers)
      if (!layer.name.empty()) names += (names.empty() ? "" : ", ") + layer.name;
    if (!names.empty())
      return Error(Code::kInUse,
                   image_.path + " has snapshots (" + names +
                       "), which need its base as it is: delete them first, or commit a clone");
    return {};
  }

  // Step 1.
  Result<void> freeze_hidden() {
    PCOW_TRY(image_.durability.sync());
    PreparedStructure prepared;
    prepared.directory = image_.layers.directory();
    Layer* frozen = prepared.directory.find(prepared.directory.active);
    frozen->hidden = true;
    frozen->time_ns = realtime_ns();
    frozen->identity = random_identity();
    PCOW_TRY(image_.structure.prepare_active(&prepared, frozen->id, frozen->size));
    PCOW_TRY(image_.structure.change_to(&prepared));
    return image_.structure.seal();
  }

  // Steps 2 and 3.
  Result<bool> put_into_base() {
    const Geometry& geometry = base_.geometry;
    PreparedStructure prepared;
    prepared.directory = base_.layers.directory();
    added_.id = prepared.directory.next_id++;
    added_.parent = reference_.layer;
    added_.name = name_;
    added_.automatic = automatic_;
    added_.time_ns = realtime_ns();
    added_.identity = random_identity();
    added_.size = frozen_.size;
    added_.table_length = geometry.table_length(added_.size);
    auto first = base_.space->allocate_range(added_.table_length >> geometry.block_shift());
    if (!first) return first.error();
    added_.table_offset = *first << geometry.block_shift();
    auto table =
        Table::map(base_.file, added_.table_offset, geometry.blocks_for(added_.size), true);
    if (!table) return table.error();
    PCOW_TRY(copy_layer(*table));

    // A frozen layer's id must be smaller than that of the active layer, so the active layer gets a
    // new id. If it is empty and stands where the image stood, it moves onto the new layer, and the
    // base's own content changes.
    const Layer active = base_.layers.active_layer();
    const bool follows = base_.layers.active_is_empty() && active.parent == reference_.layer &&
                         active.size <= added_.size;
    prepared.directory.erase(active.id);
    prepared.directory.layers.push_back(added_);
    if (follows) {
      PCOW_TRY(base_.structure.prepare_active(&prepared, added_.id, added_.size));
    } else {
      Layer renewed = active;
      renewed.id = prepared.directory.next_id++;
      prepared.directory.active = renewed.id;
      prepared.directory.layers.push_back(std::move(renewed));
    }
    prepared.heir = added_.id;
    prepared.heir_source = base_.layers.source_of(added_, (*table)->present());
    prepared.sealed = added_.id;
    PCOW_TRY(base_.structure.change_to(&prepared));
    if (follows) {
      base_.layers.note_change_of_content();
      PCOW_TRY(release_layer(&base_, active, nullptr));
    }
    return follows;
  }

  // Step 2: copies what the image's frozen layer holds into a table of the base. No lock is needed,
  // because no other thread knows that table yet.
  Result<void> copy_layer(const std::shared_ptr<Table>& table) {
    const uint64_t entries = base_.geometry.blocks_for(frozen_.size);
    const uint64_t chunk_bytes = uint64_t{kBlocksPerChunk} << base_.geometry.block_shift();
    auto present = present_chunks(*image_.file, frozen_.table_offset, entries);
    if (!present) return present.error();
    uint64_t total = 0;
    for (const auto& [first, end] : *present) total += (end - first) * chunk_bytes;
    uint64_t done = 0;
    for (const auto& [first, end] : *present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        if (progress_ && !progress_(done, total))
          return Error(Code::kCancelled, "the commit was interrupted; " + image_.path +
                                             " and its base are as they were");
        EntryPage page;
        PCOW_TRY(read_entry_page(*image_.file, frozen_.table_offset, entries, chunk, &page));
        for (uint64_t i = 0; i < kBlocksPerChunk; i++)
          if (page[i]) PCOW_TRY(copy_block(chunk * kBlocksPerChunk + i, page[i], table));
        done += chunk_bytes;
      }
    }
    return {};
  }

  Result<void> copy_block(uint64_t block, uint64_t word, const std::shared_ptr<Table>& table) {
    auto checked =
        checked_entry(word, base_.geometry, *image_.file, image_.layers.is_lazy(), block);
    if (!checked) return checked.error();
    if (checked->remote)
      return remote_error(*image_.file, image_.superblocks.current().uuid, frozen_.id, block);
    PCOW_TRY(table->ensure(block / kBlocksPerChunk));
    if (!checked->index) {
      base_.own_blocks.make_zero(table.get(), block, {}, checked->written);
      return {};
    }
    const uint64_t from = uint64_t{checked->index} << base_.geometry.block_shift();
    const auto copy = [&](uint64_t block_offset) {
      return base_.own_blocks.copy_sub_blocks(
          block_offset, checked->written, [&](uint32_t within, char* to, uint32_t length) {
            return image_.file->read_all(from + within, to, length);
          });
    };
    const auto owned = base_.own_blocks.make_own(
        table, block, {}, {checked->written, checked->written}, OwnBlocks::Purpose::kData, copy);
    return owned ? Result<void>() : owned.error();
  }

  // Step 4.
  Result<void> stand_on_it() {
    PreparedStructure prepared;
    prepared.directory = image_.layers.directory();
    prepared.directory.erase(frozen_.id);
    prepared.directory.find(prepared.directory.active)->parent = 0;
    prepared.base = reference_;
    prepared.base->layer = added_.id;
    prepared.base->identity = added_.identity;
    auto bases = image_.bases.open(prepared.base, {});
    if (!bases) return bases.error();
    prepared.bases = std::move(*bases);
    return image_.structure.change_to(&prepared);
  }

  ImageState& image_;
  ImageState& base_;
  const std::string& name_;
  const bool automatic_;
  const Progress& progress_;
  BaseReference reference_;  // the layer on which the image stands
  Layer frozen_;             // a layer of the image, frozen in step 1
  Layer added_;              // the new layer of the base
};

}  // namespace

Result<bool> Image::commit_into(Image* target, const std::string& name, bool automatic,
                                const Progress& progress) {
  ImageState& state = *state_;
  const auto change = [&]() -> Result<bool> {
    if (target == this) return Error(Code::kInvalid, state.path + " cannot be its own base");
    PCOW_TRY(check_snapshot_name(name));
    const auto holding = Structure::lock_both(state.structure, target->state_->structure);
    return CommitToBase(&state, target->state_.get(), name, automatic, progress).run();
  };
  return state.failures.noted(change());
}

}  // namespace pcow
