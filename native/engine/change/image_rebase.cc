// Rebase: another base, or none, with the same content.
//
// Order (docs/format.md, "What a writer does, in which order"):
//   1. Every root takes in what it does not hold itself and what the two bases hold differently:
//      entry by entry, under the chunk's lock, with the old base's content. It reads the same
//      before and after, so a crash leaves the image as it was.
//   2. A sync makes durable what the roots have taken in.
//   3. The superblock names the new base.
// A rebase never changes the content of a frozen root. Like a merge, it only moves bytes to a
// nearer layer.
//
// The image can be used meanwhile. What is written in the active layer is its own, and stays. A
// discard there must also hide what the new base holds (Layers::hidden_below()), because it may
// remove zeros that step 1 has put into the active layer for this purpose.

#include <algorithm>
#include <cstring>
#include <shared_mutex>

#include "engine/change/new_base.h"
#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {
namespace {

// Where a chain holds a sub-block: the identity of the file, and the offset in it. No file: zeros.
// The same remote sub-block of the same layer has the same content, whatever that is.
struct Location {
  const File* file = nullptr;
  std::pair<dev_t, ino_t> identity{};
  uint64_t offset = 0;
  // The bytes are remote; `offset` is that of the entry.
  bool remote = false;
  bool same_as(const Location& other) const {
    return identity == other.identity && offset == other.offset && !file == !other.file &&
           remote == other.remote;
  }
};

class ChunkOfChain {
 public:
  static Result<ChunkOfChain> of(const Chain& chain, const Geometry& geometry, uint64_t chunk) {
    ChunkOfChain found(chain, geometry);
    if (!chain.may_hold(chunk)) return found;
    auto resolved = chain.resolve(chunk).unconfirmed();
    if (!resolved) return resolved.error();
    found.resolved_ = std::move(*resolved);
    for (const auto& source : chain.sources()) {
      auto status = source->file->status();
      if (!status) return status.error();
      found.identities_.emplace_back(status->st_dev, status->st_ino);
    }
    return found;
  }

  uint16_t mask(size_t block_in_chunk) const {
    uint16_t mask = 0;
    if (resolved_)
      for (size_t p = resolved_->start[block_in_chunk]; p < resolved_->start[block_in_chunk + 1];
           p++)
        mask |= resolved_->pieces[p].mask;
    return mask;
  }

  // Verifies the sub-block, if it has a checksum.
  Result<void> verify(uint64_t block, uint32_t sub_block) const {
    const size_t i = block % kBlocksPerChunk;
    if (resolved_)
      for (size_t p = resolved_->start[i]; p < resolved_->start[i + 1]; p++)
        if (resolved_->pieces[p].index && resolved_->pieces[p].mask >> sub_block & 1)
          return chain_->verify(block, resolved_->pieces[p]);
    return {};
  }

  Result<Location> location(uint64_t block, uint32_t sub_block) const {
    const size_t i = block % kBlocksPerChunk;
    if (resolved_) {
      for (size_t p = resolved_->start[i]; p < resolved_->start[i + 1]; p++) {
        const Piece& piece = resolved_->pieces[p];
        if (!(piece.mask >> sub_block & 1)) continue;
        const Source& source = *chain_->sources()[piece.source];
        uint64_t index = piece.index;
        if (!index) {
          auto now = chain_->look_again(block, piece).unconfirmed();
          if (!now) return now.error();
          if (now->remote)
            return Location{source.file.get(), identities_[piece.source],
                            source.table_offset + block * 8, true};
          index = now->index;
          if (!index) return Location{};
        }
        return Location{source.file.get(), identities_[piece.source],
                        (index << geometry_->block_shift()) +
                            (uint64_t{sub_block} << geometry_->sub_block_shift())};
      }
    }
    return Location{};
  }

 private:
  ChunkOfChain(const Chain& chain, const Geometry& geometry)
      : chain_(&chain), geometry_(&geometry) {}
  const Chain* chain_;
  const Geometry* geometry_;
  std::shared_ptr<const ResolvedChunk> resolved_;
  std::vector<std::pair<dev_t, ino_t>> identities_;
};

Result<void> read_at(const Location& location, char* to, size_t length) {
  if (location.remote)
    return Error(Code::kRemote,
                 location.file->path() +
                     " has bytes that the comparison of the two bases needs and that "
                     "have not been fetched yet (pcow prefetch)");
  if (!location.file) {
    memset(to, 0, length);
    return {};
  }
  return location.file->read_all(location.offset, to, length);
}

bool all_zero(const char* bytes, size_t length) {
  return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

// Step 1 for one root. If another process merges layers of either base, both chains are opened
// again.
class TakingIn {
 public:
  TakingIn(ImageState* state, const Layer& root, std::shared_ptr<Table> table)
      : state_(*state),
        geometry_(state->geometry),
        table_(std::move(table)),
        entries_(geometry_.blocks_for(root.size)),
        old_bytes_(geometry_.block_size()),
        new_bytes_(geometry_.sub_block_size()) {}

  Result<void> run(const std::function<bool(uint64_t chunk)>& go_on) {
    const uint64_t chunks = (entries_ + kBlocksPerChunk - 1) / kBlocksPerChunk;
    for (uint64_t chunk = 0; chunk < chunks; chunk++) {
      if (!go_on(chunk))
        return Error(
            Code::kCancelled,
            state_.path +
                ": the change of its base was interrupted; it still stands on its old base");
      for (int round = 0;; round++) {
        if (chains_are_stale()) PCOW_TRY(renew_chains());
        const bool held = old_chain_->may_hold(chunk) || new_chain_->may_hold(chunk);
        auto done = held ? take_in_chunk(chunk) : Result<void>();
        if (done && !chains_are_stale()) break;
        if (!done && (done.error().code != Code::kBaseChanged || round == kStaleRounds))
          return done;
      }
    }
    return {};
  }

 private:
  // Whether the two chains have changed since this root began to use them: the gate is open
  // meanwhile, and another thread that found them stale may have opened new ones.
  bool chains_are_stale() const {
    const std::shared_lock lock(state_.gate);
    return !old_chain_ || epoch_ != state_.layers.epoch() || state_.layers.is_stale();
  }

  Result<void> renew_chains() {
    PCOW_TRY(state_.layers.refresh());
    const std::shared_lock lock(state_.gate);
    old_chain_ = std::make_shared<Chain>(geometry_, state_.bases.current().sources);
    new_chain_ = state_.bases.coming_chain();
    epoch_ = state_.layers.epoch();
    return {};
  }

  Result<void> take_in_chunk(uint64_t chunk) {
    auto from = ChunkOfChain::of(*old_chain_, geometry_, chunk);
    if (!from) return from.error();
    auto to = ChunkOfChain::of(*new_chain_, geometry_, chunk);
    if (!to) return to.error();
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, entries_);
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      const size_t i = block % kBlocksPerChunk;
      const uint16_t own = Entry::unpack(table_->load(block)).written;
      if (!((from->mask(i) | to->mask(i)) & ~own)) continue;
      uint16_t zeros = 0;
      auto wanted = differences(*from, *to, block, own, &zeros);
      if (!wanted) return wanted.error();
      if (!*wanted) continue;
      if (chains_are_stale()) return state_.stale_error();
      PCOW_TRY(take_in(block, *wanted, zeros));
    }
    return {};
  }

  // The sub-blocks of a block that must be taken in; `*zeros` are those of them that are zeros, and
  // `old_bytes_` holds the others.
  Result<uint16_t> differences(const ChunkOfChain& from, const ChunkOfChain& to, uint64_t block,
                               uint16_t own, uint16_t* zeros) {
    const uint32_t length = geometry_.sub_block_size();
    const size_t i = block % kBlocksPerChunk;
    uint16_t wanted = 0;
    for (uint32_t number = 0; number < geometry_.sub_blocks(); number++) {
      if (!(((from.mask(i) | to.mask(i)) & ~own) >> number & 1)) continue;
      const auto before = from.location(block, number);
      if (!before) return before.error();
      const auto after = to.location(block, number);
      if (!after) return after.error();
      if (before->same_as(*after)) continue;
      char* bytes = old_bytes_.data() + (size_t{number} << geometry_.sub_block_shift());
      PCOW_TRY(from.verify(block, number));
      PCOW_TRY(to.verify(block, number));
      PCOW_TRY(read_at(*before, bytes, length));
      PCOW_TRY(read_at(*after, new_bytes_.data(), length));
      if (memcmp(bytes, new_bytes_.data(), length) == 0) continue;
      wanted |= static_cast<uint16_t>(1u << number);
      if (all_zero(bytes, length)) *zeros |= static_cast<uint16_t>(1u << number);
    }
    return wanted;
  }

  Result<void> take_in(uint64_t block, uint16_t wanted, uint16_t zeros) {
    PCOW_TRY(table_->ensure(block / kBlocksPerChunk));
    const std::lock_guard lock(state_.chunk_locks.of(block));
    const Entry entry = Entry::unpack(table_->load(block));
    // The active layer may have been written meanwhile.
    wanted &= static_cast<uint16_t>(~entry.written);
    if (!wanted) return {};
    if (entry.remote)
      return Error(Code::kRemote, state_.path + ": block " + std::to_string(block) +
                                      " has not been fetched yet (pcow prefetch)");
    if (!entry.index && (wanted & ~zeros) == 0) {
      state_.own_blocks.make_zero(table_.get(), block, entry, wanted);
      return {};
    }
    const auto fill = [&](uint64_t block_offset) {
      return geometry_.each_run(wanted, [&](uint32_t within, uint32_t length) {
        return state_.file->write(block_offset + within, old_bytes_.data() + within, length);
      });
    };
    const auto owned =
        state_.own_blocks.make_own(table_, block, entry, {wanted}, OwnBlocks::Purpose::kData, fill);
    return owned ? Result<void>() : owned.error();
  }

  ImageState& state_;
  const Geometry& geometry_;
  const std::shared_ptr<Table> table_;  // the root's table
  const uint64_t entries_;
  std::vector<char> old_bytes_;  // of a block, in the old base
  std::vector<char> new_bytes_;  // of a sub-block
  std::shared_ptr<const Chain> old_chain_;
  std::shared_ptr<const Chain> new_chain_;
  uint64_t epoch_ = 0;  // of both chains
};

// The root layers of an image, and their tables after they have taken in what they must.
struct Roots {
  std::vector<Layer> layers;
  std::vector<std::shared_ptr<Table>> tables;
  uint64_t total = 0;  // bytes
};

Roots roots_of(const LayerDirectory& directory) {
  Roots roots;
  for (const Layer& layer : directory.layers) {
    if (layer.parent) continue;
    roots.layers.push_back(layer);
    roots.total += layer.size;
  }
  return roots;
}

// Steps 1 and 2.
Result<void> take_in_all(ImageState& state, Roots* roots, const Progress& progress) {
  uint64_t before = 0;
  for (const Layer& root : roots->layers) {
    std::shared_ptr<Table> table = state.layers.active();
    if (root.id != state.layers.directory().active) {
      auto mapped =
          Table::map(state.file, root.table_offset, state.geometry.blocks_for(root.size), true);
      if (!mapped) return mapped.error();
      table = std::move(*mapped);
    }
    roots->tables.push_back(table);
    const auto go_on = [&](uint64_t chunk) {
      return !progress ||
             progress(before + std::min(root.size,
                                        chunk * kBlocksPerChunk << state.geometry.block_shift()),
                      roots->total);
    };
    PCOW_TRY(TakingIn(&state, root, table).run(go_on));
    before += root.size;
  }
  return keeps(Rule::kTakenInBeforeSuperblock) ? state.durability.sync() : Result<void>();
}

// Step 3, if everything was taken in. Readers see what frozen roots have taken in even if the rest
// failed.
Result<void> end_change(ImageState& state, const std::optional<BaseReference>& base,
                        const Roots& roots, Result<void> outcome) {
  const std::unique_lock lock(state.gate);
  BaseChain bases = state.bases.end_change();
  if (outcome) {
    Superblock superblock = state.superblocks.next();
    superblock.base = base;
    outcome = state.superblocks.put(superblock);
    if (outcome) {
      state.superblocks.adopt(superblock);
      state.bases.adopt(std::move(bases));
    }
  }
  for (size_t i = 0; i < roots.tables.size(); i++) {
    if (roots.layers[i].id == state.layers.directory().active) continue;
    state.layers.adopt_chunks(roots.layers[i], roots.tables[i]->present());
  }
  state.layers.renew_chains();
  return outcome;
}

}  // namespace

Result<void> Image::rebase(const BaseSpec& spec, bool has_base, const Progress& progress) {
  ImageState& state = *state_;
  return state.structure.change([&]() -> Result<void> {
    // A root that is being merged away shares blocks with its heir, which writes into them.
    PCOW_TRY(finish_deletions(&state, "another base"));
    std::optional<BaseReference> base;
    if (has_base) {
      auto reference = reference_to(state, spec);
      if (!reference) return reference.error();
      base = std::move(*reference);
    }
    auto coming = state.bases.open(base, {});
    if (!coming) return coming.error();
    {
      const std::unique_lock lock(state.gate);
      state.bases.begin_change(base, std::move(*coming));
    }
    Roots roots = roots_of(state.layers.directory());
    PCOW_TRY(end_change(state, base, roots, take_in_all(state, &roots, progress)));
    PCOW_TRY(state.file->sync());
    if (progress) progress(roots.total, roots.total);
    return {};
  });
}

}  // namespace pcow
