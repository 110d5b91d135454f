// Reads parts of blocks: the active layer's own sub-blocks directly, all others through its chain.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "engine/image/chain.h"

namespace pcow {

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

inline Part part_at(const Geometry& geometry, uint64_t offset, uint64_t left) {
  const auto from = static_cast<uint32_t>(offset & (geometry.block_size() - 1));
  return {offset >> geometry.block_shift(), from,
          static_cast<uint32_t>(std::min<uint64_t>(geometry.block_size(), from + left))};
}

// Reads parts of blocks through one chain, and remembers the current chunk.
class ChainReader {
 public:
  ChainReader(const Geometry& geometry, const Chain& chain) : geometry_(geometry), chain_(chain) {}

  // `own`: the entry of a layer above the chain, in `own_file`; empty if there is no such layer.
  Result<void> read(const Part& part, const Entry& own, const File& own_file, char* to,
                    Gatherer* gatherer) {
    const uint16_t wanted = geometry_.touched_mask(part.from, part.to);
    if (own.index && (own.written & wanted) == wanted)
      return gatherer->add(own_file, offset_of(own.index, part.from), to, part.length());
    const Piece* pieces = nullptr;
    size_t count = 0;
    if (wanted & ~own.written) PCOW_TRY(look_up(part.block, &pieces, &count));
    // Goes sub-block by sub-block; the gatherer joins neighbours.
    const Piece* verified = nullptr;
    Piece filled{};
    for (uint32_t at = part.from; at < part.to;) {
      const uint32_t number = at >> geometry_.sub_block_shift();
      const uint32_t end = std::min(part.to, (number + 1) << geometry_.sub_block_shift());
      char* target = to + (at - part.from);
      const File* file = nullptr;
      uint32_t index = 0;
      if (own.written >> number & 1) {
        if (own.remote) return remote_error(own_file, {}, 0, part.block);
        file = &own_file;
        index = own.index;
      } else {
        for (size_t i = 0; i < count && !file; i++) {
          if (!(pieces[i].mask >> number & 1)) continue;
          if (&pieces[i] != verified) {
            filled = pieces[i];
            if (!filled.index) PCOW_TRY(look_again(part.block, &filled));
            if (const auto& uses = chain_.sources()[filled.source]->uses) uses->note(part.block);
            // What was filled may have become zeros since.
            if (filled.index) PCOW_TRY(chain_.verify(part.block, filled));
          }
          verified = &pieces[i];
          file = chain_.sources()[filled.source]->file.get();
          index = filled.index;
        }
      }
      if (index) {
        PCOW_TRY(gatherer->add(*file, offset_of(index, at), target, end - at));
      } else {
        memset(target, 0, end - at);
      }
      at = end;
    }
    return {};
  }

 private:
  uint64_t offset_of(uint32_t index, uint32_t within) const {
    return (uint64_t{index} << geometry_.block_shift()) + within;
  }

  // kRemote if the piece is still remote.
  Result<void> look_again(uint64_t block, Piece* piece) const {
    auto now = chain_.look_again(block, *piece).unconfirmed();
    if (!now) return now.error();
    const Source& source = *chain_.sources()[piece->source];
    if (now->remote) return remote_error(*source.file, source.image, source.layer, block);
    piece->index = now->index;
    return {};
  }

  Result<void> look_up(uint64_t block, const Piece** pieces, size_t* count) {
    const uint64_t chunk = block / kBlocksPerChunk;
    if (chunk != chunk_) {
      resolved_ = nullptr;
      if (chain_.may_hold(chunk)) {
        // The caller confirms after the read, because the bytes must still have been there, too.
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

}  // namespace pcow
