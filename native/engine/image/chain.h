// A frozen layer as it reads: itself and all layers below it, over all files of its chain, resolved
// chunk by chunk.
//
// A frozen layer never changes, so a chunk is resolved once (with one look at each layer of the
// chain) and remembered; afterwards a read costs the same at any depth. Only the merge of a deleted
// snapshot moves frozen data. Within the writer's process, chains are then built again under the
// exclusive lock. Another process may merge layers of a base: every file of the chain that this
// process does not write is watched (generation_watch.h), before and after each look.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/disk/file.h"
#include "engine/format/checksums.h"
#include "engine/format/entry.h"
#include "engine/format/geometry.h"
#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"
#include "engine/format/table.h"
#include "engine/image/uses.h"

namespace pcow {

// One layer of a chain.
struct Source {
  std::shared_ptr<File> file;
  uint64_t table_offset = 0;
  uint64_t entries = 0;
  bool only_durable = false;  // the host crashed under the file's writer: Entry::as_durable applies
  bool lazy = false;          // it may have remote entries
  std::shared_ptr<Uses> uses;  // of a lazy image
  uint64_t layer = 0;          // id
  Uuid image{};
  std::vector<ChunkRange> present;
  std::shared_ptr<const Checksums> checksums;  // null: none
};

// A frozen layer of `file`, which has this superblock, as a link of chains.
std::shared_ptr<const Source> make_source(std::shared_ptr<File> file, const Superblock& superblock,
                                          const Layer& layer, bool only_durable,
                                          std::vector<ChunkRange> present);

// Where some sub-blocks of a block are. One word, because a busy image remembers millions of them.
// Zeros have no piece.
struct Piece {
  uint64_t index : 30;   // of the block in the source's file; 0: they are remote
  uint64_t source : 18;  // number in the chain, 0 nearest
  uint64_t mask : 16;    // sub-blocks
};
static_assert(sizeof(Piece) == 8);
static_assert(kMaxBlockIndex < uint64_t{1} << 30);
static_assert(kMaxChainLayers <= uint64_t{1} << 18);

// A chunk of a chain, resolved: the pieces of block i of the chunk are those from start[i] to
// start[i + 1].
struct ResolvedChunk {
  static_assert(kBlocksPerChunk * kMaxSubBlocks <= UINT16_MAX,
                "each sub-block of a chunk may be a piece of its own");
  std::array<uint16_t, kBlocksPerChunk + 1> start{};
  std::vector<Piece> pieces;
  std::array<uint16_t, kBlocksPerChunk>
      buried{};  // sub-blocks of which some layer holds data, whether it is hidden or not
};

// kCorrupt unless the word is a possible entry of a block of `file`: sound, and with an index
// behind the superblocks and inside the file. `lazy`: the entry may be remote. `block` is for the
// message.
Result<Entry> checked_entry(uint64_t word, const Geometry& geometry, const File& file, bool lazy,
                            uint64_t block);

// kRemote: what the reader needs of this block is not in `file` yet.
Error remote_error(const File& file, const Uuid& image, uint64_t layer, uint64_t block);

// What a look at a chain saw. It counts only after Layers::confirm() has found that no file of the
// chain has got another structure meanwhile. The type makes it impossible to use the result without
// this confirmation.
template <typename T>
class [[nodiscard]] Look {
 public:
  Look(T seen) : seen_(std::move(seen)) {}        // NOLINT(google-explicit-constructor)
  Look(Error error) : seen_(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  // For a caller that looks often and confirms once: after the last look, and before it does
  // anything with the results.
  Result<T> unconfirmed() && { return std::move(seen_); }

 private:
  friend class Layers;
  Result<T> seen_;
};

class Chain {
 public:
  using Sources = std::vector<std::shared_ptr<const Source>>;  // nearest layer first

  // `continued`: a chain that is still right. If its layers are the last ones of `sources`, its
  // resolved chunks are taken over, chunk by chunk. So after a snapshot of an image with a thousand
  // snapshots, each chunk needs a look at one table, not at a thousand.
  Chain(const Geometry& geometry, Sources sources,
        std::shared_ptr<const Chain> continued = nullptr);

  const Sources& sources() const { return sources_; }
  // False: no layer of the chain holds anything of this chunk.
  bool may_hold(uint64_t chunk) const;
  // kCorrupt if an entry is not sound.
  Look<std::shared_ptr<const ResolvedChunk>> resolve(uint64_t chunk) const;
  // The sub-blocks of a block of which data is visible in the chain, and the number of the nearest
  // layer that has some of it.
  struct BlockBelow {
    uint16_t mask = 0;
    size_t nearest = SIZE_MAX;
  };
  Look<BlockBelow> look(uint64_t block) const;
  // As the mask of look(), and also the sub-blocks whose data a nearer layer hides behind zeros.
  Look<uint16_t> buried_mask(uint64_t block) const;
  // The entry of a remote piece as it is now: the block may have been filled since the chunk was
  // resolved, also by another process. If it was, the chunk is resolved again at the next look.
  Look<Entry> look_again(uint64_t block, const Piece& piece) const;
  // kCorrupt if the block of the piece does not match its checksum; no error if it has none.
  Result<void> verify(uint64_t block, const Piece& piece) const {
    const auto& checksums = sources_[piece.source]->checksums;
    return checksums ? checksums->verify(block, piece.index) : Result<void>();
  }

 private:
  Result<std::shared_ptr<const ResolvedChunk>> build(uint64_t chunk) const;
  std::shared_ptr<const ResolvedChunk> take(uint64_t chunk) const;

  struct Remembered {
    std::shared_ptr<const ResolvedChunk> resolved;
    std::list<uint64_t>::iterator age;
  };

  const Geometry geometry_;
  const Sources sources_;
  mutable std::mutex mutex_;  // guards the fields below
  mutable std::shared_ptr<const Chain> continued_;
  mutable std::unordered_map<uint64_t, Remembered> cache_;
  mutable std::list<uint64_t> ages_;  // most recently used first
};

}  // namespace pcow
