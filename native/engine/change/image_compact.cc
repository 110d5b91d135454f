// Compaction: giving back blocks that hold only zeros.
//
// The entry of such a block becomes *zero here*, or, in the active layer, empty if no lower layer
// holds data. Every layer reads as before. Order (docs/format.md, "What a writer does, in which
// order"):
//   1. The entries are changed one by one; in the active layer with the gate held exclusively,
//      because writes go to its blocks in place.
//   2. A superblock with the next generation makes readers in other processes load the tables
//      again.
//   3. Only then are the blocks released: one sync makes the freeing durable and punches them, and
//      the next sync makes them free.
// A crash at any point leaves some entries changed and others not, with the same content.

#include <algorithm>
#include <bit>
#include <cstring>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// Whether all of these sub-blocks of a block in the file are zeros. Holes are not read.
Result<bool> is_zero(const ImageState& state, uint32_t index, uint16_t mask) {
  std::vector<char> bytes(state.geometry.sub_block_size());
  for (uint32_t number = 0; number < state.geometry.sub_blocks(); number++) {
    if (!(mask >> number & 1)) continue;
    const uint64_t from = (uint64_t{index} << state.geometry.block_shift()) +
                          (uint64_t{number} << state.geometry.sub_block_shift());
    auto data = state.file->next_data(from, from + bytes.size());
    if (!data) return data.error();
    if (*data == from + bytes.size()) continue;
    PCOW_TRY(state.file->read_all(from, bytes.data(), bytes.size()));
    if (bytes[0] != 0 || memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) != 0)
      return false;
  }
  return true;
}

// Step 1 for one layer. Blocks that are released are held back (Space).
Result<void> compact_layer(ImageState& state, const Layer& layer,
                           const std::function<bool(uint64_t bytes)>& go_on) {
  const bool is_active = layer.id == state.layers.directory().active;
  const uint64_t entries = state.geometry.blocks_for(layer.size);
  std::shared_ptr<Table> table = state.layers.active();
  if (!is_active) {
    auto mapped = Table::map(state.file, layer.table_offset, entries, true);
    if (!mapped) return mapped.error();
    table = std::move(*mapped);
  }
  const std::shared_ptr<const Checksums> checksums =
      is_active ? nullptr : state.layers.source_in_use(layer.id)->checksums;
  for (const auto& [first, end] : table->present()) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
      if (!go_on(uint64_t{kBlocksPerChunk} << state.geometry.block_shift()))
        return Error(Code::kCancelled,
                     state.path + ": compacting was interrupted; what was done so far is kept");
      PCOW_TRY(state.layers.bring_up_to_date());
      const uint64_t limit = std::min((chunk + 1) * kBlocksPerChunk, entries);
      for (uint64_t block = chunk * kBlocksPerChunk; block < limit; block++) {
        const Entry seen = Entry::unpack(table->load(block));
        if (!seen.index) continue;
        auto zero = is_zero(state, seen.index, seen.written);
        if (!zero) return zero.error();
        if (!*zero) continue;
        // A damaged block that happens to hold zeros is kept.
        if (checksums && !checksums->verify(block, seen.index)) continue;

        const std::unique_lock exclusively(state.gate);
        const Entry entry = Entry::unpack(table->load(block));
        if (is_active) {
          // The block may have been written since the first look.
          if (!entry.index) continue;
          zero = is_zero(state, entry.index, entry.written);
          if (!zero) return zero.error();
          if (!*zero) continue;
        }
        uint16_t hides = entry.written;
        if (is_active) {
          auto lower = state.layers.hidden_below(block);
          if (!lower && lower.error().code == Code::kBaseChanged)
            continue;  // what lower layers hold cannot be known now
          if (!lower) return lower.error();
          hides &= *lower;
        }
        PCOW_TRY(table->ensure(chunk));
        const std::lock_guard lock(state.chunk_locks.of(block));
        table->store(block, {0, hides, hides});
        state.space->release(entry.index, 1);
      }
    }
  }
  return {};
}

}  // namespace

Result<void> Image::compact(const Progress& progress) {
  ImageState& state = *state_;
  return state.structure.change([&]() -> Result<void> {
    // A layer that is being merged away shares blocks with its heir: finish that merge first.
    PCOW_TRY(finish_deletions(&state, "compacting"));
    uint64_t total = 0;
    for (const Layer& layer : state.layers.directory().layers) {
      auto present =
          present_chunks(*state.file, layer.table_offset, state.geometry.blocks_for(layer.size));
      if (!present) return present.error();
      for (const auto& [first, end] : *present)
        total += (end - first) * kBlocksPerChunk << state.geometry.block_shift();
    }
    uint64_t done = 0;
    const auto go_on = [&](uint64_t bytes) {
      const bool goes_on = !progress || progress(std::min(done, total), total);
      done += bytes;
      return goes_on;
    };

    state.structure.begin_taking_out();
    Result<void> outcome;
    for (const Layer& layer : state.layers.directory().layers) {
      outcome = compact_layer(state, layer, go_on);
      if (!outcome) break;
    }
    // What was changed is completed even if the rest failed.
    {
      const std::unique_lock lock(state.gate);
      // In any case: chains remember blocks that have been released.
      state.layers.renew_chains();
    }
    PCOW_TRY(state.structure.let_go());
    PCOW_TRY(state.durability.sync());
    PCOW_TRY(state.durability.sync());
    PCOW_TRY(outcome);
    if (progress) progress(total, total);
    return {};
  });
}

}  // namespace pcow
