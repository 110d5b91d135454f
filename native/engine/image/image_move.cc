// A chunk of the active layer is brought into one piece of the file, for a monitor that has too many
// mappings. own_blocks.h describes the order in which blocks are moved.
#include <algorithm>
#include <bit>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "engine/image/image_state.h"

namespace pcow {

// Blocks of the chunk that are not own yet would go beside their neighbours, where there is room.
uint64_t ActiveLayer::pieces_when_complete(uint64_t offset) const {
  const uint64_t chunk = (offset >> image_.geometry.block_shift()) / kBlocksPerChunk;
  const uint64_t first = chunk * kBlocksPerChunk;
  const uint64_t end = std::min(first + kBlocksPerChunk, layers_.active()->entries());
  const auto index_of = [&](uint64_t block) -> uint64_t {
    return Entry::unpack(layers_.active()->load(block)).index;
  };
  constexpr uint64_t kAnywhere = ~uint64_t{0};
  uint64_t pieces = 0;
  uint64_t expected = 0;  // where the present piece would continue; 0: nowhere
  for (uint64_t block = first; block < end; block++) {
    if (const uint64_t index = index_of(block)) {
      if (index != expected) pieces++;
      expected = index + 1;
    } else if (expected != kAnywhere) {
      if (space_->is_free(expected)) {
        expected++;
        continue;
      }
      uint64_t next = block + 1;
      while (next < end && !index_of(next)) next++;
      const uint64_t place =
          next < end ? index_of(next) - std::min(index_of(next), next - block) : 0;
      pieces++;
      expected = space_->is_free(place) ? place + 1 : kAnywhere;
    }
  }
  return pieces;
}

uint64_t Image::pieces_when_complete(uint64_t offset) const {
  const ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  return state.active_layer.pieces_when_complete(offset);
}

Result<void> ActiveLayer::copy_content(uint64_t block, const Entry& entry, uint64_t to, bool fresh,
                                       FaultWork* work) const {
  if (entry.remote) return layers_.remote_in_active(block);
  auto lower = layers_.mask_below(block);
  if (!lower) return lower.error();
  const auto own = entry.index ? entry.written : uint16_t{0};
  const auto below = static_cast<uint16_t>(*lower & ~entry.written);
  const auto zeros = static_cast<uint16_t>(image_.geometry.full_mask() & ~own & ~below);
  work->copied_bytes += static_cast<uint64_t>(std::popcount(own) + std::popcount(below))
                        << image_.geometry.sub_block_shift();
  const uint64_t from = uint64_t{entry.index} << image_.geometry.block_shift();
  PCOW_TRY(own_blocks_.copy_sub_blocks(to, own, [&](uint32_t within, char* bytes, uint32_t length) {
    return image_.file->read_all(from + within, bytes, length);
  }));
  PCOW_TRY(copy_below(block, to, below));
  if (fresh) return {};
  return own_blocks_.copy_sub_blocks(to, zeros,
                                     [&](uint32_t, char* bytes, uint32_t length) -> Result<void> {
                                       std::fill_n(bytes, length, 0);
                                       return {};
                                     });
}

class MoveState {
 public:
  // A block of the chunk.
  struct Block {
    bool fresh = true;    // nothing was ever copied to its new place
    bool copied = false;  // there is a synced copy, of what was there when
    Entry entry;          // … this was its entry,
    uint64_t syncs = 0;   // … and so many syncs had been asked for
    bool moved = false;
  };

  MoveState(ImageState* of, std::shared_ptr<Table> active, uint64_t block, uint64_t index,
            uint64_t count)
      : image(of), table(std::move(active)), first(block), place(index), blocks(count) {}

  uint32_t place_of(uint64_t i) const { return static_cast<uint32_t>(place + i); }
  uint64_t offset_of(uint64_t i) const { return (place + i) << image->geometry.block_shift(); }
  bool is_active() const { return image->layers.active() == table; }
  Result<void> copy(uint64_t i, FaultWork* work);
  Result<bool> move(uint64_t i);

  // The numbers, in the chunk, of the blocks in a range of bytes of the image.
  struct Range {
    uint64_t from;
    uint64_t to;
  };
  Range range(uint64_t from, uint64_t to) const {
    const uint32_t shift = image->geometry.block_shift();
    const auto clamp = [&](uint64_t block) {
      return std::min(block - std::min(block, first), uint64_t{blocks.size()});
    };
    return {clamp(from >> shift), clamp(image->geometry.blocks_for(to))};
  }

  ImageState* const image;
  const std::shared_ptr<Table> table;  // of the active layer, until another one is active
  const uint64_t first;                // block of the image
  const uint64_t place;                // block of the file
  bool outdated = false;               // another layer is active
  std::vector<Block> blocks;
};

// Step 1 for one block. The gate is held for no longer than a fault holds it.
Result<void> MoveState::copy(uint64_t i, FaultWork* work) {
  const uint64_t syncs = image->durability.syncs_asked_for();
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(image->gate);
    if (image->layers.is_closed()) return image->closed_error();
    if (image->layers.is_stale()) return image->stale_error();
    outdated |= !is_active();
    if (outdated) return {};
    Block& block = blocks[i];
    block.copied = false;
    block.entry = Entry::unpack(table->load(first + i));
    block.syncs = syncs;
    return image->active_layer.copy_content(first + i, block.entry, offset_of(i),
                                            std::exchange(block.fresh, false), work);
  };
  return image->layers.while_stale(attempt);
}

// Steps 3 to 5 for one block. Returns whether it was moved.
Result<bool> MoveState::move(uint64_t i) {
  Block& block = blocks[i];
  if (!std::exchange(block.copied, false)) return false;
  const Entry now = Entry::unpack(table->load(first + i));
  if (now.index != block.entry.index || (block.entry.written & ~now.written)) return false;
  if (now.index) {
    auto changed = image->own_blocks.copy_again(
        uint64_t{now.index} << image->geometry.block_shift(), offset_of(i), now.written);
    if (!changed) return changed;
    if (*changed && image->durability.syncs_asked_for() != block.syncs &&
        keeps(Rule::kNoSyncSinceCopy))
      return false;
  } else if (now != block.entry) {
    return false;
  }
  image->own_blocks.name_moved(table.get(), first + i, now, place_of(i));
  block.moved = true;
  return true;
}

ChunkMove::ChunkMove(std::unique_ptr<MoveState> state) : state_(std::move(state)) {}

ChunkMove::~ChunkMove() {
  for (uint64_t i = 0; i < state_->blocks.size(); i++)
    if (!state_->blocks[i].moved) state_->image->space->release(state_->place_of(i), 1);
}

Result<std::unique_ptr<ChunkMove>> ChunkMove::begin(Image* image, uint64_t offset) {
  ImageState& state = *image->state_;
  const auto begun = [&]() -> Result<std::unique_ptr<ChunkMove>> {
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
    state.durability.note_lent();
    const std::shared_ptr<Table> table = state.layers.active();
    const uint64_t chunk = (offset >> state.geometry.block_shift()) / kBlocksPerChunk;
    const uint64_t first = chunk * kBlocksPerChunk;
    const uint64_t count = std::min<uint64_t>(kBlocksPerChunk, table->entries() - first);
    PCOW_TRY(table->ensure(chunk));
    PCOW_TRY(state.space->keep_reserve());
    auto place = state.space->take_window(count, table->entries());
    if (!place) return place.error();
    return std::unique_ptr<ChunkMove>(
        new ChunkMove(std::make_unique<MoveState>(&state, table, first, *place, count)));
  };
  return state.failures.noted(begun());
}

Result<void> ChunkMove::copy(uint64_t from, uint64_t to, FaultWork* work) {
  ImageState& image = *state_->image;
  const MoveState::Range range = state_->range(from, to);
  std::vector<uint64_t> copied;
  const auto attempt = [&]() -> Result<void> {
    for (uint64_t i = range.from; i < range.to && !state_->outdated; i++) {
      if (state_->blocks[i].moved) continue;
      PCOW_TRY(image.own_blocks.make_mappable(state_->offset_of(i), image.geometry.block_size()));
      auto made = state_->copy(i, work);
      if (!made && made.error().code == Code::kRemote) continue;  // it stays
      PCOW_TRY(made);
      copied.push_back(i);
    }
    if (copied.empty() || state_->outdated || !keeps(Rule::kMovedBeforeEntry)) return {};
    const uint64_t begin = state_->offset_of(copied.front());
    return image.file->sync(begin, state_->offset_of(copied.back() + 1) - begin);
  };
  PCOW_TRY(image.failures.noted(attempt()));
  for (const uint64_t i : copied) state_->blocks[i].copied = !state_->outdated;
  return {};
}

bool ChunkMove::has_copies(uint64_t from, uint64_t to) const {
  const auto [low, high] = state_->range(from, to);
  return std::any_of(state_->blocks.begin() + static_cast<ptrdiff_t>(low),
                     state_->blocks.begin() + static_cast<ptrdiff_t>(high),
                     [](const MoveState::Block& block) { return block.copied; });
}

Result<std::vector<Extent>> ChunkMove::move(uint64_t from, uint64_t to) {
  ImageState& image = *state_->image;
  const auto attempt = [&]() -> Result<std::vector<Extent>> {
    std::vector<Extent> moved;
    const std::unique_lock alone(image.gate);
    if (image.layers.is_closed()) return image.closed_error();
    state_->outdated |= !state_->is_active();
    if (state_->outdated) return moved;
    const std::lock_guard storing(image.chunk_locks.of(state_->first));
    const uint32_t size = image.geometry.block_size();
    const MoveState::Range range = state_->range(from, to);
    for (uint64_t i = range.from; i < range.to; i++) {
      auto done = state_->move(i);
      if (!done) return done.error();
      if (!*done) continue;
      const uint64_t offset = (state_->first + i) << image.geometry.block_shift();
      if (!moved.empty() && moved.back().offset + moved.back().length == offset)
        moved.back().length += size;
      else
        moved.push_back({offset, size, state_->offset_of(i)});
    }
    return moved;
  };
  return image.failures.noted(attempt());
}

bool ChunkMove::is_done() const {
  return state_->outdated || std::all_of(state_->blocks.begin(), state_->blocks.end(),
                                         [](const MoveState::Block& block) { return block.moved; });
}

}  // namespace pcow
