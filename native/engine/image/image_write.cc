// Writes, discards, and the sync that a writer asks for.
//
// A write to sub-blocks that the active layer already holds is done in place, as on any disk. Other
// sub-blocks first become its own, in the usual order (own_blocks.h), with the new bytes, and
// around them the bytes that were read there before.

#include <algorithm>
#include <cstring>
#include <shared_mutex>

#include "engine/image/chain_reader.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// The caller holds the gate.
Result<void> check_changeable(const ImageState& state) {
  if (state.layers.is_closed()) return state.closed_error();
  if (state.layers.is_stale()) return state.stale_error();
  if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
  return {};
}

}  // namespace

// Writes bytes [at, end) of a block, whose sub-blocks are all own or all not. Those that are not
// own are written as a whole, so that what an unfinished write may have left in the block never
// shows. Of own ones only these bytes are written, because their neighbours may be written in place
// at the same time, without the lock. The caller holds the chunk's lock.
Result<void> ActiveLayer::fill(uint64_t block, uint64_t block_offset, const Entry& before, bool own,
                               uint32_t at, uint32_t end, const char* bytes) const {
  const uint32_t first = at >> image_.geometry.sub_block_shift()
                                   << image_.geometry.sub_block_shift();
  const uint32_t last = round_up(end, image_.geometry.sub_block_size());
  if (own || (first == at && last == end))
    return image_.file->write(block_offset + at, bytes, end - at);
  std::vector<char> whole(last - first);
  PCOW_TRY(layers_.read_below(block, before, first, whole.data(), whole.size()));
  memcpy(whole.data() + (at - first), bytes, end - at);
  return image_.file->write(block_offset + first, whole.data(), whole.size());
}

Result<void> ActiveLayer::write(uint64_t offset, const void* buffer, size_t length) {
  const auto* from = static_cast<const char*>(buffer);
  for (size_t done = 0; done < length;) {
    Part part = part_at(image_.geometry, offset + done, length - done);
    uint16_t touched = image_.geometry.touched_mask(part.from, part.to);
    Entry entry = Entry::unpack(layers_.active()->load(part.block));

    // What the active layer already holds is written in place, as on any disk, and neighbours with
    // one system call.
    if (entry.index && (entry.written & touched) == touched) {
      const uint64_t in_file = (uint64_t{entry.index} << image_.geometry.block_shift()) + part.from;
      size_t run = part.length();
      for (uint64_t next = part.block + 1; done + run < length; next++) {
        const Part follower = part_at(image_.geometry, offset + done + run, length - done - run);
        const Entry other = Entry::unpack(layers_.active()->load(next));
        const uint16_t mask = image_.geometry.touched_mask(follower.from, follower.to);
        if (other.index != entry.index + (next - part.block) || (other.written & mask) != mask)
          break;
        run += follower.length();
      }
      PCOW_TRY(image_.file->write(in_file, from + done, run));
      done += run;
      continue;
    }

    const uint64_t chunk = part.block / kBlocksPerChunk;
    PCOW_TRY(layers_.active()->ensure(chunk));
    const std::lock_guard lock(chunk_locks_.of(part.block));
    entry = Entry::unpack(layers_.active()->load(part.block));
    const auto is_own = [&](uint32_t byte) {
      return entry.index && (entry.written >> (byte >> image_.geometry.sub_block_shift()) & 1);
    };
    const auto owned = own_blocks_.make_own(
        layers_.active(), part.block, entry, {touched}, OwnBlocks::Purpose::kData,
        [&](uint64_t block_offset) -> Result<void> {
          for (uint32_t at = part.from; at < part.to;) {
            const bool own = is_own(at);
            uint32_t end = at;
            while (end < part.to && is_own(end) == own)
              end = std::min(part.to, ((end >> image_.geometry.sub_block_shift()) + 1)
                                          << image_.geometry.sub_block_shift());
            PCOW_TRY(fill(part.block, block_offset, entry, own, at, end,
                          from + done + (at - part.from)));
            at = end;
          }
          return {};
        });
    if (!owned) return owned.error();
    done += part.length();
  }
  return {};
}

Result<void> Image::write(uint64_t offset, const void* buffer, size_t length) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    PCOW_TRY(check_changeable(state));
    const uint64_t size = state.layers.active_layer().size;
    if (offset > size || length > size - offset)
      return Error(Code::kTooLarge, state.path + ": a write would go past the end of the image (" +
                                        std::to_string(size) +
                                        " bytes); pcow resize makes it larger");
    return state.active_layer.write(offset, buffer, length);
  };
  auto outcome = state.layers.while_stale(attempt);
  // The disk is full, but released blocks are waiting for a sync: two syncs give their space back.
  if (!outcome && outcome.error().code == Code::kNoSpace && state.space->has_pending() &&
      state.durability.sync() && state.durability.sync())
    outcome = state.layers.while_stale(attempt);
  return state.failures.noted(std::move(outcome));
}

// Of a block that has no block in the file: whole sub-blocks of which lower layers hold data.
Result<void> ActiveLayer::discard_sub_blocks(uint64_t block, uint32_t from, uint32_t to,
                                             uint16_t lower) const {
  const uint32_t shift = image_.geometry.sub_block_shift();
  const uint32_t first = (from + image_.geometry.sub_block_size() - 1) >> shift;
  const uint32_t end = to >> shift;
  if (first >= end) return {};
  const auto whole = static_cast<uint16_t>(((1u << end) - 1) & ~((1u << first) - 1));
  if (!(lower & whole)) return {};
  PCOW_TRY(layers_.active()->ensure(block / kBlocksPerChunk));
  const std::lock_guard lock(chunk_locks_.of(block));
  const Entry before = Entry::unpack(layers_.active()->load(block));
  const auto gained = static_cast<uint16_t>(lower & whole & ~before.written);
  if (gained && !before.has_data())
    own_blocks_.make_zero(layers_.active().get(), block, before, gained);
  return {};
}

// Whole blocks are released: the entry becomes empty, or *zero here* if a lower layer holds data.
// Data that a lower layer hides behind zeros counts as well, because that layer may be the one that
// a running merge takes out, and this entry may hold the zeros that it has already handed over.
// *Zero here* has no data that could be missing after a crash, so it is durable with its entry. In
// a block that is discarded in part, own sub-blocks are punched in place. Those that lower layers
// hold become *zero here* if the entry has no block; otherwise zeros are written over them, because
// what an unfinished write may have left in the block must never show.
Result<void> ActiveLayer::discard(uint64_t offset, uint64_t length) {
  const std::vector<char> zeros(image_.geometry.block_size());
  for (uint64_t done = 0; done < length;) {
    const Part part = part_at(image_.geometry, offset + done, length - done);
    const uint64_t chunk = part.block / kBlocksPerChunk;
    if (!layers_.active()->may_hold(chunk) && !layers_.below().may_hold(chunk)) {
      const uint64_t next = ((chunk + 1) * kBlocksPerChunk) << image_.geometry.block_shift();
      done = std::min<uint64_t>(length, next - offset);
      continue;
    }
    done += part.length();
    auto lower = layers_.hidden_below(part.block);
    if (!lower) return lower.error();
    const bool reaches_end = offset + done >= layers_.active_layer().size;
    if (part.from == 0 && (part.to == image_.geometry.block_size() || reaches_end)) {
      // Also needed for a store that empties an entry, because the page may share its space with a
      // copy of the file. A page that holds nothing stays a hole.
      if (*lower || layers_.active()->may_hold(chunk)) PCOW_TRY(layers_.active()->ensure(chunk));
      const std::lock_guard lock(chunk_locks_.of(part.block));
      const Entry before = Entry::unpack(layers_.active()->load(part.block));
      const Entry after{0, *lower, *lower};
      if (before == after) continue;
      layers_.active()->store(part.block, after);
      if (before.index) space_->release(before.index, 1);
      continue;
    }
    PCOW_TRY(discard_sub_blocks(part.block, part.from, part.to, *lower));
    Entry entry = Entry::unpack(layers_.active()->load(part.block));
    if (entry.remote && (entry.written & image_.geometry.touched_mask(part.from, part.to)))
      return layers_.remote_in_active(part.block);
    for (uint32_t at = part.from; at < part.to;) {
      const uint32_t number = at >> image_.geometry.sub_block_shift();
      const uint32_t end = std::min(part.to, (number + 1) << image_.geometry.sub_block_shift());
      const bool own = entry.written >> number & 1;
      if (own && entry.index) {
        PCOW_TRY(image_.file->punch((uint64_t{entry.index} << image_.geometry.block_shift()) + at,
                                    end - at));
      } else if (!own && (*lower >> number & 1)) {
        PCOW_TRY(write((part.block << image_.geometry.block_shift()) + at, zeros.data(), end - at));
        entry = Entry::unpack(layers_.active()->load(part.block));
      }
      at = end;
    }
  }
  return {};
}

Result<void> Image::discard(uint64_t offset, uint64_t length) {
  ImageState& state = *state_;
  const auto attempt = [&]() -> Result<void> {
    const std::shared_lock lock(state.gate);
    PCOW_TRY(check_changeable(state));
    const uint64_t size = state.layers.active_layer().size;
    if (offset > size || length > size - offset)
      return Error(Code::kInvalid, state.path + ": a discard would go past the end of the image (" +
                                       std::to_string(size) + " bytes)");
    return state.active_layer.discard(offset, length);
  };
  return state.failures.noted(
      state.writable() ? state.full_disk.giving_back(
                             [&] { return state.layers.while_stale(attempt); }, [] { return true; })
                       : state.layers.while_stale(attempt));
}

Result<void> Image::sync() {
  ImageState& state = *state_;
  {
    const std::shared_lock lock(state.gate);
    if (state.layers.is_closed()) return state.closed_error();
  }
  if (!state.writable()) return {};
  if (state.superblocks.in_doubt()) {
    const auto holding = state.structure.lock();
    if (state.superblocks.in_doubt()) PCOW_TRY(state.failures.noted(state.superblocks.settle()));
  }
  return state.failures.noted(state.durability.sync());
}

}  // namespace pcow
