// Resize. The entries move to a table of another length. The order is that of every change of
// structure (image/structure.h).
#include <algorithm>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// Copies the active layer's entries, as far as an image of `size` bytes has them, into another
// table. What the last block holds behind the new end is left out: if the image grows again later,
// zeros are there. The caller holds the gate exclusively.
Result<void> copy_entries(ImageState& state, const std::shared_ptr<Table>& table, uint64_t size) {
  const Geometry& geometry = state.geometry;
  const Table& active = *state.layers.active();
  const uint64_t last = (size - 1) >> geometry.block_shift();
  // Bytes of the last block.
  const auto tail = static_cast<uint32_t>(size - (last << geometry.block_shift()));
  for (uint64_t chunk = 0; chunk < std::min(active.chunks(), table->chunks()); chunk++) {
    if (!active.may_hold(chunk)) continue;
    PCOW_TRY(table->ensure(chunk));
    const uint64_t end =
        std::min({(chunk + 1) * kBlocksPerChunk, active.entries(), table->entries()});
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      Entry entry = Entry::unpack(active.load(block));
      if (block == last && size < state.layers.active_layer().size) {
        entry.written &= geometry.touched_mask(0, tail);
        entry.durable &= entry.written;
        // A sub-block that the new end cuts.
        const uint32_t torn = tail >> geometry.sub_block_shift();
        if (entry.empty()) {
          entry = {};
        } else if (entry.remote && tail % geometry.sub_block_size() &&
                   (entry.written >> torn & 1)) {
          return state.layers.remote_in_active(block);
        } else if (entry.index && tail % geometry.sub_block_size() && (entry.written >> torn & 1)) {
          // The block is not changed in place: until the superblock names the new table, the old
          // size counts.
          std::vector<char> bytes(tail);
          PCOW_TRY(state.file->read_all(uint64_t{entry.index} << geometry.block_shift(),
                                        bytes.data(), tail));
          const auto owned = state.own_blocks.make_own(
              table, block, {}, {entry.written, entry.durable}, OwnBlocks::Purpose::kGivingBack,
              [&](uint64_t block_offset) {
                return state.file->write(block_offset, bytes.data(), tail);
              });
          if (!owned) return owned.error();
          continue;
        }
      }
      table->store(block, entry);
    }
  }
  return {};
}

// The blocks of the active layer that its new table does not name. The caller holds the gate
// exclusively: after it is released, a discard may release any block that the new table names.
std::vector<uint32_t> left_out_by(const ImageState& state, const Table& table) {
  const Table& active = *state.layers.active();
  std::vector<uint32_t> left_out;
  for (uint64_t chunk = 0; chunk < active.chunks(); chunk++) {
    if (!active.may_hold(chunk)) continue;
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, active.entries());
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      const uint32_t index = Entry::unpack(active.load(block)).index;
      const bool taken = block < table.entries() && Entry::unpack(table.load(block)).index == index;
      if (index && !taken) left_out.push_back(index);
    }
  }
  return left_out;
}

Result<void> check_size(const ImageState& state, uint64_t size, bool shrink) {
  const Layer& active = state.layers.active_layer();
  if (size % kPageSize) return Error(Code::kInvalid, "an image's size is a multiple of 4096 bytes");
  if (size < active.size && !shrink)
    return Error(Code::kInvalid, state.path + " has " + std::to_string(active.size) +
                                     " bytes; pcow resize --shrink makes it smaller, and the data "
                                     "beyond the new end is lost");
  if (size < kMinImageSize)
    return Error(Code::kInvalid,
                 "an image has at least " + std::to_string(kMinImageSize) + " bytes");
  const Layer* parent = state.layers.directory().find(active.parent);
  const uint64_t least = parent ? parent->size : state.bases.current().size;
  if (size < least)
    return Error(Code::kInvalid,
                 state.path + " can't have less than " + std::to_string(least) + " bytes, which " +
                     (parent ? parent->name.empty() ? "a deleted snapshot that it stands on"
                                                    : "its snapshot " + parent->name
                             : "its base") +
                     " has: an image is never smaller than what it stands on");
  if (size > state.geometry.max_image_size())
    return Error(Code::kTooLarge, "an image with blocks of " +
                                      std::to_string(state.geometry.block_size()) +
                                      " bytes has at most " +
                                      std::to_string(state.geometry.max_image_size()) + " bytes");
  return {};
}

// Prepares a table of the new length for the active layer, and the layer directory that names it.
Result<void> prepare_table(ImageState& state, uint64_t size, PreparedStructure* prepared) {
  prepared->directory = state.layers.directory();
  Layer* layer = prepared->directory.find(prepared->directory.active);
  layer->size = size;
  PCOW_TRY(state.structure.prepare_table(prepared, layer));
  auto ready = state.structure.prepare_directory(prepared, Structure::Reach::kFile);
  if (!ready) state.structure.abandon(*prepared);
  return ready;
}

// Moves the entries to another table. They must be durable there before the superblock names it.
// `left_out` gets the blocks that nothing names afterwards.
Result<void> move_entries(ImageState& state, uint64_t size, PreparedStructure* prepared,
                          std::vector<uint32_t>* left_out) {
  const auto no_sync = state.durability.keep_away();
  const std::unique_lock lock(state.gate);
  const bool shrinks = size < state.layers.active_layer().size;
  const std::shared_ptr<Table> old = state.layers.active();
  const std::shared_ptr<Table> table = prepared->table;
  Result<void> outcome = copy_entries(state, table, size);
  for (uint64_t chunk = 0; chunk < table->chunks(); chunk++)
    if (table->may_hold(chunk)) state.durability.mark(table, chunk);
  if (outcome && keeps(Rule::kLongerTableBeforeSuperblock)) outcome = state.file->sync();
  if (shrinks) *left_out = left_out_by(state, *table);
  if (outcome) outcome = state.structure.flip(prepared);
  if (!outcome) {
    state.durability.forget(*table);
    // The one block that copy_entries() may have allocated.
    const uint64_t last = table->entries() - 1;
    const uint32_t taken = Entry::unpack(table->load(last)).index;
    if (taken && taken != Entry::unpack(last < old->entries() ? old->load(last) : 0).index)
      state.space->release(taken, 1);
    state.structure.abandon(*prepared);
    return outcome;
  }
  state.durability.forget(*old);
  if (shrinks) state.layers.note_change_of_content();
  return {};
}

}  // namespace

Result<void> Image::resize(uint64_t size, bool shrink) {
  ImageState& state = *state_;
  const auto change = [&]() -> Result<void> {
    const Layer before = state.layers.active_layer();
    PCOW_TRY(check_size(state, size, shrink));
    if (size == before.size) return {};
    PreparedStructure prepared;
    PCOW_TRY(prepare_table(state, size, &prepared));
    std::vector<uint32_t> left_out;
    PCOW_TRY(move_entries(state, size, &prepared, &left_out));
    if (auto synced = state.durability.sync(); !synced) {
      state.structure.note_leak();
      return synced;
    }
    for (const uint32_t index : left_out) state.space->release(index, 1);
    state.space->release(before.table_offset >> state.geometry.block_shift(),
                         before.table_length >> state.geometry.block_shift());
    return {};
  };
  return state.structure.change([&]() -> Result<void> {
    if (!shrink) return change();
    // A snapshot whose deletion was interrupted must not prevent the change.
    PCOW_TRY(finish_deletions(&state, "making it smaller"));
    return state.full_disk.giving_back_by_change(change);
  });
}

}  // namespace pcow
