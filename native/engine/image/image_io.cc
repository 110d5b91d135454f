// Bytes in and out: reads, writes, discards.
//
// A write into sub-blocks that the active layer holds already is done in place, as on any disk. The others become its own first, by the
// same order of steps as everywhere (own_block.h), with the new bytes, and around them what was read there before.

#include <algorithm>
#include <cstring>
#include <shared_mutex>

#include "engine/image/own_block.h"

namespace pcow {
namespace {

// A writer moves a block once in a while: whoever sees this many reads in a row overtaken is being fooled.
constexpr int kMovedRounds = 1000;

// Joins neighbouring reads of one file into one system call.
class Gatherer {
 public:
  Result<void> add(const File& file, uint64_t offset, char* to, size_t length) {
    if (file_ == &file && offset == offset_ + length_ && to == to_ + length_) {
      length_ += length;
      return {};
    }
    PCOW_TRY(flush());
    file_ = &file;
    offset_ = offset;
    to_ = to;
    length_ = length;
    return {};
  }
  Result<void> flush() {
    if (!file_) return {};
    PCOW_TRY(file_->read_all(offset_, to_, length_));
    file_ = nullptr;
    return {};
  }

 private:
  const File* file_ = nullptr;
  uint64_t offset_ = 0;
  char* to_ = nullptr;
  size_t length_ = 0;
};

// The part of one block that a request covers: bytes [from, to) of block `block`.
struct Part {
  uint64_t block;
  uint32_t from;
  uint32_t to;
  uint32_t length() const { return to - from; }
};

Part part_at(const Geometry& geometry, uint64_t offset, uint64_t left) {
  const auto from = static_cast<uint32_t>(offset & (geometry.block_size() - 1));
  return {offset >> geometry.block_shift(), from,
          static_cast<uint32_t>(std::min<uint64_t>(geometry.block_size(), from + left))};
}

// Reads parts of blocks through one chain, remembering the chunk at hand.
class ChainReader {
 public:
  ChainReader(const Geometry& geometry, const Chain& chain) : geometry_(geometry), chain_(chain) {}

  // `own`: the entry of a layer above the chain, in `own_file`; empty where there is none.
  Result<void> read(const Part& part, const Entry& own, const File& own_file, char* to, Gatherer* gatherer) {
    const uint16_t wanted = geometry_.touched_mask(part.from, part.to);
    if (own.index && (own.written & wanted) == wanted)
      return gatherer->add(own_file, place(own.index, part.from), to, part.length());
    const Piece* pieces = nullptr;
    size_t count = 0;
    if (wanted & ~own.written) PCOW_TRY(look_up(part.block, &pieces, &count));
    // Sub-block by sub-block; the gatherer joins what belongs together.
    const Piece* verified = nullptr;
    for (uint32_t at = part.from; at < part.to;) {
      const uint32_t number = at >> geometry_.sub_block_shift();
      const uint32_t end = std::min(part.to, (number + 1) << geometry_.sub_block_shift());
      char* target = to + (at - part.from);
      const File* file = nullptr;
      uint32_t index = 0;
      if (own.written >> number & 1) {
        file = &own_file;
        index = own.index;
      } else {
        for (size_t i = 0; i < count && !file; i++) {
          if (!(pieces[i].mask >> number & 1)) continue;
          if (&pieces[i] != verified) PCOW_TRY(chain_.verify(part.block, pieces[i]));
          verified = &pieces[i];
          file = chain_.sources()[pieces[i].source]->file.get();
          index = pieces[i].index;
        }
      }
      if (index) {
        PCOW_TRY(gatherer->add(*file, place(index, at), target, end - at));
      } else {
        memset(target, 0, end - at);
      }
      at = end;
    }
    return {};
  }

 private:
  uint64_t place(uint32_t index, uint32_t within) const {
    return (uint64_t{index} << geometry_.block_shift()) + within;
  }

  Result<void> look_up(uint64_t block, const Piece** pieces, size_t* count) {
    const uint64_t chunk = block / kBlocksPerChunk;
    if (chunk != chunk_) {
      resolved_ = nullptr;
      if (chain_.may_hold(chunk)) {
        // Whoever reads by this confirms afterwards: the bytes must have been there as well.
        auto resolved = chain_.resolve(chunk).unconfirmed();
        if (!resolved) return resolved.error();
        resolved_ = std::move(*resolved);
      }
      chunk_ = chunk;
    }
    if (!resolved_) return {};
    const size_t i = block % kBlocksPerChunk;
    *pieces = resolved_->pieces.data() + resolved_->start[i];
    *count = static_cast<size_t>(resolved_->start[i + 1] - resolved_->start[i]);
    return {};
  }

  const Geometry& geometry_;
  const Chain& chain_;
  uint64_t chunk_ = ~uint64_t{0};
  std::shared_ptr<const ResolvedChunk> resolved_;
};

}  // namespace

// The writer, another process, may free and use again a block between our look at its entry and at its data: `*moved` then, and what
// was read does not count.
Result<size_t> ImageState::read_once(const View* view, uint64_t offset, void* buffer, size_t length, bool* moved) {
  *moved = false;
  const uint64_t size = view ? view->size() : directory.active_layer().size;
  if (offset >= size) return size_t{0};
  length = std::min<uint64_t>(length, size - offset);

  // A view may be of the active layer: until a snapshot freezes it, its entries are read like those of no view.
  const bool of_active = !view || view->layer() == directory.active;
  std::shared_ptr<const Chain> chain = below;
  if (of_active && view) {
    if (auto layer = layer_in_view(*view); !layer) return layer.error();
  } else if (view) {
    auto built = chain_of(*view);
    if (!built) return built.error();
    chain = std::move(*built);
  }
  ChainReader reader(geometry, *chain);
  Gatherer gatherer;
  std::vector<std::pair<uint64_t, uint64_t>> used;  // entries of a table that another process may be changing
  auto* to = static_cast<char*>(buffer);
  for (size_t done = 0; done < length;) {
    const Part part = part_at(geometry, offset + done, length - done);
    Entry own;
    if (of_active) {
      uint64_t word = active->load(part.block);
      if (!writable()) {
        used.emplace_back(part.block, word);
        // The host crashed under the writer: only what was synced counts.
        if (crashed) word = Entry::unpack(word).as_durable().pack();
      }
      auto checked = checked_entry(word, geometry, *file, part.block);
      if (!checked) return checked.error();
      own = *checked;
    }
    PCOW_TRY(reader.read(part, own, *file, to + done, &gatherer));
    done += part.length();
  }
  PCOW_TRY(gatherer.flush());
  for (const auto& [block, word] : used)
    *moved |= Entry::unpack(word).index != Entry::unpack(active->load(block)).index;
  return length;
}

Result<size_t> ImageState::read_locked(const View* view, uint64_t offset, void* buffer, size_t length) {
  for (int round = 0; round < kMovedRounds; round++) {
    bool moved;
    auto count = read_once(view, offset, buffer, length, &moved);
    if (!moved) return count;
  }
  return Error(Code::kIo, path + " changes faster than it can be read");
}

Result<size_t> Image::read(const View* view, uint64_t offset, void* buffer, size_t length) const {
  ImageState& state = *state_;
  // Another process may merge layers of a base, or be the writer of this image, while we read: what was read counts only
  // if no superblock of the chain changed meanwhile.
  for (int round = 0; round < kStaleRounds; round++) {
    {
      const std::shared_lock lock(state.gate);
      if (state.closed) return state.closed_error();
      if (!state.is_stale()) {
        auto count = state.read_locked(view, offset, buffer, length);
        // Mapping it anew does not help twice.
        if (auto whole = state.untorn(); !whole && (round || state.writable()))
          return state.noted(Result<size_t>(whole.error()));
        if (!state.is_stale()) return state.noted(std::move(count));
      }
    }
    PCOW_TRY(state.noted(state.refresh()));
  }
  return state.noted(Result<size_t>(Error(Code::kIo, state.path + " changes faster than it can be read")));
}

Result<uint16_t> ImageState::mask_below(uint64_t block) const {
  auto seen = confirm(below->look(block));
  if (!seen) return seen.error();
  return seen->mask;
}

Result<uint16_t> ImageState::hidden_below(uint64_t block) const {
  // What a merge takes out below may come back by a crash.
  if (handing_over) return geometry.full_mask();
  auto now = confirm(below->buried_mask(block));
  if (!now || !coming) return now;
  auto later = confirm(coming->chain->buried_mask(block));
  if (!later) return later;
  return static_cast<uint16_t>(*now | *later);
}

Result<void> ImageState::read_below(uint64_t block, const Entry& own, uint32_t from, char* to, size_t length) const {
  Gatherer gatherer;
  ChainReader reader(geometry, *below);
  auto outcome = reader.read({block, from, from + static_cast<uint32_t>(length)}, own, *file, to, &gatherer);
  if (outcome) outcome = gatherer.flush();
  return confirm(std::move(outcome));
}

// With the chunk's lock held: bytes [at, end) of a block, all in own sub-blocks or all in others. Others are written whole, so
// that what an unfinished write may have left in the block never shows. Of own ones just these bytes: their neighbours may be
// written in place at the same time, without the lock.
Result<void> ImageState::fill(uint64_t block, uint64_t place, const Entry& before, bool own, uint32_t at, uint32_t end,
                              const char* bytes) {
  const uint32_t first = at >> geometry.sub_block_shift() << geometry.sub_block_shift();
  const uint32_t last = round_up(end, geometry.sub_block_size());
  if (own || (first == at && last == end)) return file->write(place + at, bytes, end - at);
  std::vector<char> whole(last - first);
  PCOW_TRY(read_below(block, before, first, whole.data(), whole.size()));
  memcpy(whole.data() + (at - first), bytes, end - at);
  return file->write(place + first, whole.data(), whole.size());
}

Result<void> ImageState::write_locked(uint64_t offset, const void* buffer, size_t length) {
  const auto* from = static_cast<const char*>(buffer);
  for (size_t done = 0; done < length;) {
    Part part = part_at(geometry, offset + done, length - done);
    uint16_t touched = geometry.touched_mask(part.from, part.to);
    Entry entry = Entry::unpack(active->load(part.block));

    // What the active layer holds already is written in place, as on any disk; neighbours in one system call.
    if (entry.index && (entry.written & touched) == touched) {
      const uint64_t place = (uint64_t{entry.index} << geometry.block_shift()) + part.from;
      size_t run = part.length();
      for (uint64_t next = part.block + 1; done + run < length; next++) {
        const Part follower = part_at(geometry, offset + done + run, length - done - run);
        const Entry other = Entry::unpack(active->load(next));
        const uint16_t mask = geometry.touched_mask(follower.from, follower.to);
        if (other.index != entry.index + (next - part.block) || (other.written & mask) != mask) break;
        run += follower.length();
      }
      PCOW_TRY(file->write(place, from + done, run));
      done += run;
      continue;
    }

    const uint64_t chunk = part.block / kBlocksPerChunk;
    PCOW_TRY(active->ensure(chunk));
    const std::lock_guard lock(chunk_lock(part.block));
    entry = Entry::unpack(active->load(part.block));
    const auto is_own = [&](uint32_t byte) {
      return entry.index && (entry.written >> (byte >> geometry.sub_block_shift()) & 1);
    };
    const auto owned =
        make_own(active, part.block, entry, {touched}, Purpose::kData, [&](uint64_t place) -> Result<void> {
          for (uint32_t at = part.from; at < part.to;) {
            const bool own = is_own(at);
            uint32_t end = at;
            while (end < part.to && is_own(end) == own)
              end = std::min(part.to, ((end >> geometry.sub_block_shift()) + 1) << geometry.sub_block_shift());
            PCOW_TRY(fill(part.block, place, entry, own, at, end, from + done + (at - part.from)));
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
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
    if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
    const uint64_t size = state.directory.active_layer().size;
    if (offset > size || length > size - offset)
      return Error(Code::kTooLarge, state.path + ": a write would go past the end of the image (" +
                                        std::to_string(size) + " bytes); pcow resize makes it larger");
    return state.write_locked(offset, buffer, length);
  };
  auto outcome = while_stale(state, attempt);
  // A full disk, but freed blocks are waiting for a sync: two of them give their space back.
  if (!outcome && outcome.error().code == Code::kNoSpace && state.space->has_pending() && state.sync() && state.sync())
    outcome = while_stale(state, attempt);
  return state.noted(std::move(outcome));
}

// Whole blocks are let go: the entry becomes empty, or "zero here" where something lies below. Data that a layer below hides
// behind zeros counts as well: that layer may be the one that a merge under way is about to take out, and this entry may
// hold the zeros that it has already handed on. "Zero here" has no data that could be missing after a crash, so it is
// durable with its entry. In a block that is discarded in part, sub-blocks
// of our own are punched in place, and zeros are written over those of the layers below.
Result<void> ImageState::discard_locked(uint64_t offset, uint64_t length) {
  const std::vector<char> zeros(geometry.block_size());
  for (uint64_t done = 0; done < length;) {
    const Part part = part_at(geometry, offset + done, length - done);
    const uint64_t chunk = part.block / kBlocksPerChunk;
    if (!active->may_hold(chunk) && !below->may_hold(chunk)) {
      const uint64_t next = ((chunk + 1) * kBlocksPerChunk) << geometry.block_shift();
      done = std::min<uint64_t>(length, next - offset);
      continue;
    }
    done += part.length();
    auto lower = hidden_below(part.block);
    if (!lower) return lower.error();
    const bool reaches_end = offset + done >= directory.active_layer().size;
    if (part.from == 0 && (part.to == geometry.block_size() || reaches_end)) {
      // Also for a store that empties an entry: the page may share its space with a copy of the file. One that holds nothing stays a hole.
      if (*lower || active->may_hold(chunk)) PCOW_TRY(active->ensure(chunk));
      const std::lock_guard lock(chunk_lock(part.block));
      const Entry before = Entry::unpack(active->load(part.block));
      const Entry after{0, *lower, *lower};
      if (before == after) continue;
      active->store(part.block, after);
      if (before.index) space->release(before.index, 1);
      continue;
    }
    Entry entry = Entry::unpack(active->load(part.block));
    for (uint32_t at = part.from; at < part.to;) {
      const uint32_t number = at >> geometry.sub_block_shift();
      const uint32_t end = std::min(part.to, (number + 1) << geometry.sub_block_shift());
      const bool own = entry.written >> number & 1;
      if (own && entry.index) {
        PCOW_TRY(file->punch((uint64_t{entry.index} << geometry.block_shift()) + at, end - at));
      } else if (!own && (*lower >> number & 1)) {
        PCOW_TRY(write_locked((part.block << geometry.block_shift()) + at, zeros.data(), end - at));
        entry = Entry::unpack(active->load(part.block));
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
    if (state.closed) return state.closed_error();
    if (state.is_stale()) return state.stale_error();
    if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
    const uint64_t size = state.directory.active_layer().size;
    if (offset > size || length > size - offset)
      return Error(Code::kInvalid,
                   state.path + ": a discard would go past the end of the image (" + std::to_string(size) + " bytes)");
    return state.discard_locked(offset, length);
  };
  return state.noted(state.writable()
                         ? state.giving_back([&] { return while_stale(state, attempt); }, [] { return true; })
                         : while_stale(state, attempt));
}

}  // namespace pcow
