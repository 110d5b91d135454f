// Lazy images: their source, entries that say that bytes are remote, and filling these blocks.
//
// Order of a fill (docs/format.md, "What a writer does, in which order"):
//   1. A free block is taken for each remote entry.
//   2. The sub-blocks are written there. Nothing names these blocks yet.
//   3. A sync: one for all of them.
//   4. The entries are stored, with the same `written` and `durable`.
// After a crash an entry is remote as before, and the block is free, or it is filled and its bytes
// are on the disk. Step 4 needs no sync: what it stores may as well be fetched again.
//
// Steps 2 and 3 take long, and are done without any lock but `filling`. So a layer may be gone by
// then, or another thread may have filled the block: its entry is looked at again before step 4.
// Readers meet the new entry when they look again at what they remember as remote
// (Chain::look_again()).

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "engine/format/remote_source.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// A batch of Image::remote_blocks() ends with the page on which it reaches this.
constexpr size_t kRemoteBlocks = 65536;
constexpr uint64_t kRemotePages = 512;

Error not_there(const ImageState& state, uint64_t layer) {
  return Error(Code::kNotFound, state.path + " has no frozen layer " + std::to_string(layer));
}

// One fill.
class Fill {
 public:
  Fill(ImageState* state, uint64_t layer, uint64_t block, const char* data, size_t length)
      : state_(*state), layer_(layer), first_(block), data_(data), length_(length) {}

  Result<uint64_t> run() {
    auto filled = take_blocks();
    if (filled) filled = write_blocks();
    if (filled && keeps(Rule::kFilledBeforeEntry) && !taken_.empty() &&
        !state_.file->is_persistent())
      filled = state_.file->sync();
    if (!filled) {
      for (const Taken& taken : taken_) state_.space->release(taken.index, 1);
      return filled.error();
    }
    return store_entries();
  }

 private:
  struct Taken {
    uint64_t block;
    uint32_t index;
    uint16_t written;
  };

  // Step 1.
  Result<void> take_blocks() {
    const Geometry& geometry = state_.geometry;
    const std::shared_lock lock(state_.gate);
    if (state_.layers.is_closed()) return state_.closed_error();
    if (!state_.writable())
      return Error(Code::kReadOnly, state_.path + " is open for reading only");
    const LayerDirectory& directory = state_.layers.directory();
    const Layer* layer = directory.find(layer_);
    if (!layer || layer->id == directory.active) return not_there(state_, layer_);
    const uint64_t end = first_ + geometry.blocks_for(length_);
    const uint64_t entries = geometry.blocks_for(layer->size);
    if (first_ >= entries || end > entries || (length_ % geometry.block_size() && end < entries))
      return Error(Code::kInvalid, state_.path + ": a fill consists of whole blocks of a layer");
    auto table = state_.filling.table_of(state_, *layer);
    if (!table) return table.error();
    table_ = std::move(*table);
    for (uint64_t block = first_; block < end; block++) {
      const Entry entry = Entry::unpack(table_->load(block));
      if (!entry.remote) continue;
      PCOW_TRY(table_->ensure(block / kBlocksPerChunk));
      auto index = take_block(block);
      if (!index) return index.error();
      taken_.push_back({block, *index, entry.written});
    }
    return {};
  }

  // Neighbours should be neighbours in the file, too.
  Result<uint32_t> take_block(uint64_t block) {
    if (!taken_.empty() && taken_.back().block + 1 == block &&
        state_.space->take_block(uint64_t{taken_.back().index} + 1))
      return taken_.back().index + 1;
    const uint64_t coming = first_ + state_.geometry.blocks_for(length_) - block;
    return state_.own_blocks.take_block(
        *table_, block, {}, OwnBlocks::Purpose::kData,
        std::min(coming, kBlocksPerChunk - block % kBlocksPerChunk));
  }

  // Step 2. What are neighbours in both is written with one system call.
  Result<void> write_blocks() {
    const Geometry& geometry = state_.geometry;
    uint64_t offset = 0;
    const char* from = nullptr;
    size_t waiting = 0;
    const auto flush = [&] {
      const size_t length = std::exchange(waiting, 0);
      return length ? state_.file->write(offset, from, length) : Result<void>();
    };
    for (const Taken& taken : taken_) {
      const uint64_t in_data = (taken.block - first_) << geometry.block_shift();
      const uint64_t in_file = uint64_t{taken.index} << geometry.block_shift();
      PCOW_TRY(
          geometry.each_run(taken.written, [&](uint32_t within, uint32_t length) -> Result<void> {
            if (in_data + within >= length_) return {};  // behind the end of the layer
            const size_t there = std::min<uint64_t>(length, length_ - in_data - within);
            if (!waiting || offset + waiting != in_file + within ||
                from + waiting != data_ + in_data + within) {
              PCOW_TRY(flush());
              offset = in_file + within;
              from = data_ + in_data + within;
            }
            waiting += there;
            return {};
          }));
    }
    return flush();
  }

  // Step 4.
  Result<uint64_t> store_entries() {
    uint64_t filled = 0;
    const std::shared_lock lock(state_.gate);
    const bool is_there = state_.layers.directory().find(layer_) != nullptr;
    if (!is_there) state_.filling.forget(layer_);
    for (const Taken& taken : taken_) {
      const std::lock_guard storing(state_.chunk_locks.of(taken.block));
      if (is_there && Entry::unpack(table_->load(taken.block)).remote) {
        table_->store(taken.block, {taken.index, taken.written, taken.written});
        filled++;
      } else {
        state_.space->release(taken.index, 1);
      }
    }
    return is_there ? Result<uint64_t>(filled) : Result<uint64_t>(not_there(state_, layer_));
  }

  ImageState& state_;
  const uint64_t layer_;  // id
  const uint64_t first_;  // block
  const char* const data_;
  const size_t length_;  // bytes
  std::shared_ptr<Table> table_;
  std::vector<Taken> taken_;
};

}  // namespace

Result<uint64_t> count_remote(const ImageState& state, const Layer& layer) {
  const uint64_t entries = state.geometry.blocks_for(layer.size);
  auto present = present_chunks(*state.file, layer.table_offset, entries);
  if (!present) return present.error();
  uint64_t count = 0;
  for (const auto& [first, end] : *present) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
      EntryPage page;
      PCOW_TRY(read_entry_page(*state.file, layer.table_offset, entries, chunk, &page));
      for (const uint64_t word : page)
        if (const Entry entry = Entry::unpack(word); entry.remote)
          count += static_cast<uint64_t>(std::popcount(entry.written));
    }
  }
  return count;
}

Result<uint64_t> Image::fill(uint64_t layer, uint64_t block, const void* data, size_t length) {
  ImageState& state = *state_;
  const auto under_way = state.filling.begin();
  const auto attempt = [&] {
    return Fill(&state, layer, block, static_cast<const char*>(data), length).run();
  };
  auto filled = attempt();
  // As for a write: released blocks may only be waiting for a sync.
  if (!filled && filled.error().code == Code::kNoSpace && state.space->has_pending() &&
      state.durability.sync() && state.durability.sync())
    filled = attempt();
  return state.failures.noted(std::move(filled));
}

// In the active layer these entries are as durable as *zero here*: they have no data.
Result<void> Image::mark_remote(const std::vector<RemoteEntry>& entries) {
  ImageState& state = *state_;
  const auto mark = [&]() -> Result<void> {
    const Geometry& geometry = state.geometry;
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
    if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
    if (!state.layers.is_lazy())
      return Error(Code::kInvalid, state.path + " has no source for remote bytes");
    const std::shared_ptr<Table>& table = state.layers.active();
    const uint64_t size = state.layers.active_layer().size;
    for (const auto& [block, mask] : entries) {
      const uint64_t start = uint64_t{block} << geometry.block_shift();
      const uint64_t length = start < size ? size - start : 0;
      const bool possible =
          length && mask &&
          (mask & ~geometry.touched_mask(0, static_cast<uint32_t>(std::min<uint64_t>(
                                                length, geometry.block_size())))) == 0;
      if (!possible)
        return Error(Code::kInvalid, state.path + ": sub-blocks of block " + std::to_string(block) +
                                         " are to be remote that the image does not have");
      PCOW_TRY(table->ensure(block / kBlocksPerChunk));
      const std::lock_guard storing(state.chunk_locks.of(block));
      if (table->load(block))
        return Error(Code::kExists, state.path + ": block " + std::to_string(block) +
                                        " is to be remote, but holds something already");
      table->store(block, {0, mask, mask, true});
    }
    return {};
  };
  return state.failures.noted(mark());
}

Result<void> Image::set_source(const std::optional<std::vector<uint8_t>>& content) {
  ImageState& state = *state_;
  const Geometry& geometry = state.geometry;
  const auto blocks_of = [&](uint64_t length) { return geometry.blocks_for(length); };
  // The caller holds the gate exclusively.
  const auto flip = [&](uint64_t offset, uint64_t length) -> Result<void> {
    Superblock next = state.superblocks.next();
    next.incompatible = content ? next.incompatible | kLazy : next.incompatible & ~kLazy;
    next.source_offset = offset;
    next.source_length = length;
    PCOW_TRY(state.superblocks.put(next));
    state.superblocks.adopt(next);
    state.layers.renew_sources();
    return {};
  };
  const auto give_up = [&]() -> Result<void> {
    for (const Layer& layer : state.layers.directory().layers) {
      auto count = count_remote(state, layer);
      if (!count) return count.error();
      if (*count)
        return Error(Code::kRemote, state.path + " is not complete: " +
                                        std::to_string(*count * geometry.sub_block_size()) +
                                        " bytes have not been fetched yet (pcow prefetch)");
    }
    return flip(0, 0);
  };
  return state.structure.change([&]() -> Result<void> {
    const Superblock before = state.superblocks.current();
    uint64_t first = 0;
    uint64_t length = 0;
    if (!content) {
      if (!before.is_lazy()) return {};
      if (keeps(Rule::kFilledBeforeSourceGone)) PCOW_TRY(state.durability.sync());
      const std::unique_lock lock(state.gate);
      PCOW_TRY(give_up());
    } else {
      const std::vector<uint8_t> bytes = encode_source(*content);
      length = bytes.size();
      if (length > kMaxSourceLength)
        return Error(Code::kTooLarge, state.path + ": the source of its bytes is too large");
      auto range = state.space->allocate_range(blocks_of(length));
      if (!range) return range.error();
      first = *range;
      const auto write = [&] {
        return state.file->write(first << geometry.block_shift(), bytes.data(), bytes.size());
      };
      Result<void> outcome;
      if (keeps(Rule::kSourceBeforeSuperblock)) {
        outcome = write();
        if (outcome) outcome = state.file->sync();
      }
      if (outcome) {
        const std::unique_lock lock(state.gate);
        outcome = flip(first << geometry.block_shift(), length);
      }
      if (!outcome) {
        if (state.superblocks.in_doubt())
          state.structure.note_leak();
        else
          state.space->release(first, blocks_of(length));
        return outcome;
      }
      if (!keeps(Rule::kSourceBeforeSuperblock)) PCOW_TRY(write());
    }
    if (keeps(Rule::kSourceBeforeRemote) || !content) {
      if (auto synced = state.durability.sync(); !synced) {
        state.structure.note_leak();
        return synced;
      }
    }
    if (before.is_lazy())
      state.space->release(before.source_offset >> geometry.block_shift(),
                           blocks_of(before.source_length));
    return {};
  });
}

Result<std::optional<std::vector<uint8_t>>> Image::source() const {
  ImageState& state = *state_;
  for (int round = 0; round < kStaleRounds; round++) {
    {
      const std::shared_lock lock(state.gate);
      if (state.layers.is_closed()) return state.closed_error();
      if (!state.layers.is_own_stale()) {
        if (!state.layers.is_lazy()) return std::optional<std::vector<uint8_t>>();
        auto content = read_source(*state.file, state.superblocks.current());
        if (!state.layers.is_own_stale()) {
          if (!content) return state.failures.noted(Result<void>(content.error())).error();
          return std::optional(std::move(*content));
        }
      }
    }
    PCOW_TRY(state.failures.noted(state.layers.refresh()));
  }
  return Error(Code::kIo, state.path + " changes faster than it can be read");
}

Result<uint64_t> Image::remote_bytes() const {
  ImageState& state = *state_;
  PCOW_TRY(state.failures.noted(state.layers.bring_up_to_date()));
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  uint64_t bytes = 0;
  if (!state.layers.is_lazy()) return bytes;
  for (const Layer& layer : state.layers.directory().layers) {
    auto count = count_remote(state, layer);
    if (!count) return count.error();
    bytes += *count << state.geometry.sub_block_shift();
  }
  return bytes;
}

Result<RemoteBatch> Image::remote_blocks(uint64_t id, uint64_t from) const {
  ImageState& state = *state_;
  PCOW_TRY(state.failures.noted(state.layers.bring_up_to_date()));
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  const Layer* layer = state.layers.directory().find(id);
  if (!layer) return not_there(state, id);
  const uint64_t entries = state.geometry.blocks_for(layer->size);
  RemoteBatch batch;
  auto present = present_chunks(*state.file, layer->table_offset, entries);
  if (!present) return present.error();
  uint64_t pages = 0;
  for (const auto& [first, end] : *present) {
    for (uint64_t chunk = std::max(first, from / kBlocksPerChunk); chunk < end; chunk++) {
      if (batch.blocks.size() >= kRemoteBlocks || pages++ == kRemotePages) {
        batch.next = std::max(from, chunk * kBlocksPerChunk);
        return batch;
      }
      EntryPage page;
      PCOW_TRY(read_entry_page(*state.file, layer->table_offset, entries, chunk, &page));
      for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
        const uint64_t block = chunk * kBlocksPerChunk + i;
        const Entry entry = Entry::unpack(page[i]);
        if (block >= from && entry.remote)
          batch.blocks.push_back({static_cast<uint32_t>(block), entry.written});
      }
    }
  }
  return batch;
}

}  // namespace pcow
