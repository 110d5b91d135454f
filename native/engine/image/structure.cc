#include "engine/image/structure.h"

#include "engine/image/clock.h"
#include "engine/rules.h"

namespace pcow {

Result<void> Structure::check_changeable() const {
  if (layers_.is_closed()) return image_.closed_error();
  if (!image_.writable()) return Error(Code::kReadOnly, image_.path + " is open for reading only");
  return {};
}

Result<void> Structure::prepare_directory(PreparedStructure* prepared, Reach reach) {
  if (prepared->directory.layers.size() > kMaxLayers)
    return Error(Code::kLimit, image_.path + " has the most layers that an image can have (" +
                                   std::to_string(kMaxLayers) + "): delete snapshots first");
  const std::vector<uint8_t> bytes = prepared->directory.encode(superblocks_.current().uuid);
  const uint64_t blocks = image_.geometry.blocks_for(bytes.size());
  auto first = space_->allocate_range(blocks);
  if (!first) return first.error();
  prepared->offset = *first << image_.geometry.block_shift();
  prepared->length = bytes.size();
  File& file = *image_.file;
  auto written = file.write(prepared->offset, bytes.data(), bytes.size());
  if (written && keeps(Rule::kDirectoryBeforeSuperblock))
    written =
        reach == Reach::kFile ? file.sync() : file.sync_stored(prepared->offset, prepared->length);
  if (!written) {
    space_->release(*first, blocks);
    prepared->length = 0;
  }
  return written;
}

Result<void> Structure::prepare_table(PreparedStructure* prepared, Layer* layer) {
  const Geometry& geometry = image_.geometry;
  layer->table_length = geometry.table_length(layer->size);
  const uint64_t blocks = layer->table_length >> geometry.block_shift();
  auto first = space_->allocate_range(blocks);
  if (!first) return first.error();
  layer->table_offset = *first << geometry.block_shift();
  auto table = Table::map(image_.file, layer->table_offset, geometry.blocks_for(layer->size), true);
  if (!table) {
    space_->release(*first, blocks);
    return table.error();
  }
  prepared->table = std::move(*table);
  return {};
}

Result<void> Structure::prepare_active(PreparedStructure* prepared, uint64_t parent,
                                       uint64_t size) {
  Layer layer;
  layer.id = prepared->directory.next_id++;
  layer.parent = parent;
  layer.time_ns = realtime_ns();
  layer.size = size;
  PCOW_TRY(prepare_table(prepared, &layer));
  prepared->table->expect_nothing();
  prepared->directory.active = layer.id;
  prepared->directory.layers.push_back(std::move(layer));
  return {};
}

void Structure::abandon(const PreparedStructure& prepared) {
  if (superblocks_.in_doubt()) {
    leaks_ = true;  // the superblock on the disk may name it
    return;
  }
  const Geometry& geometry = image_.geometry;
  if (prepared.length)
    space_->release(prepared.offset >> geometry.block_shift(),
                    geometry.blocks_for(prepared.length));
  if (prepared.table) {
    const Layer& layer = prepared.directory.active_layer();
    space_->release(layer.table_offset >> geometry.block_shift(),
                    layer.table_length >> geometry.block_shift());
  }
}

Result<void> Structure::flip(PreparedStructure* prepared) {
  Superblock next = superblocks_.next();
  next.directory_offset = prepared->offset;
  next.directory_length = prepared->length;
  next.read_only_compatible =
      (next.read_only_compatible & ~kLayerChecksums) | prepared->directory.features();
  if (prepared->sealed) next.sealed = *prepared->sealed;
  if (prepared->bases) next.base = prepared->base;
  PCOW_TRY(superblocks_.put(next));
  const Superblock& before = superblocks_.current();
  space_->release(before.directory_offset >> image_.geometry.block_shift(),
                  image_.geometry.blocks_for(before.directory_length));
  superblocks_.adopt(next);
  owing_ = false;
  const bool anew = prepared->table != nullptr;
  layers_.adopt(std::move(*prepared));
  // The new active layer begins with the windows that are free now.
  if (anew && layers_.directory().layers.size() > 1) space_->note_frozen();
  return {};
}

Result<void> Structure::change_to(PreparedStructure* prepared) {
  if (auto ready = prepare_directory(prepared, Reach::kFile); !ready) {
    abandon(*prepared);
    return ready;
  }
  {
    // A running sync must not store into a table that is dropped.
    const auto no_sync = durability_.keep_away();
    const std::unique_lock lock(gate_);
    const std::shared_ptr<Table> before = layers_.active();
    const uint64_t active_before = layers_.directory().active;
    if (auto done = flip(prepared); !done) {
      abandon(*prepared);
      return done;
    }
    if (layers_.active() != before && !layers_.directory().find(active_before))
      durability_.forget(*before);
  }
  auto outcome = keeps(Rule::kSuperblockBeforeReturn) ? durability_.sync() : Result<void>();
  // The change has happened, but its caller will not release what only the old structure used.
  if (!outcome) leaks_ = true;
  return outcome;
}

void Structure::begin_taking_out() {
  space_->hold_releases(true);
  owing_ = true;
}

// A reader in another process uses the tables that it has loaded until it sees another generation.
// If a compaction could not write its superblock, a superblock must be written now: only then may
// the blocks be used again.
Result<void> Structure::let_go() {
  if (owing_) {
    const std::unique_lock lock(gate_);
    PCOW_TRY(superblocks_.renew());
    owing_ = false;
  }
  space_->hold_releases(false);
  return {};
}

}  // namespace pcow
