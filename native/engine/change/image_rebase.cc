// Another base, or none, with the content kept.
//
// Order (docs/format.md, "What a writer does, in which order"):
//   1. every root takes in what it does not hold itself and what the two bases hold differently: entry by entry, under the
//      chunk's lock, as the old base has it. It reads the same before and after, so a crash leaves the image as it was
//   2. sync: what the roots have taken is durable
//   3. the superblock names the new base
// A frozen root never changes by this what it reads as; like a merge, it only moves bytes nearer.
//
// The image can be used meanwhile. What is written in the active layer is its own and stays. A discard there must hide what
// the new base holds as well (`coming`): it may take away zeros that step 1 has put into the active layer for that.

#include <algorithm>
#include <cstring>
#include <shared_mutex>

#include "engine/image/own_block.h"

namespace pcow {
namespace {

// Where a chain has a sub-block: in which file, by its identity, and where there. No file: zeros.
struct Place {
  const File* file = nullptr;
  std::pair<dev_t, ino_t> identity{};
  uint64_t offset = 0;
  bool same_as(const Place& other) const {
    return identity == other.identity && offset == other.offset && !file == !other.file;
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
      for (size_t p = resolved_->start[block_in_chunk]; p < resolved_->start[block_in_chunk + 1]; p++)
        mask |= resolved_->pieces[p].mask;
    return mask;
  }

  // That what it has there is not damaged, as far as checksums tell.
  Result<void> verify(uint64_t block, uint32_t sub_block) const {
    const size_t i = block % kBlocksPerChunk;
    if (resolved_)
      for (size_t p = resolved_->start[i]; p < resolved_->start[i + 1]; p++)
        if (resolved_->pieces[p].mask >> sub_block & 1) return chain_->verify(block, resolved_->pieces[p]);
    return {};
  }

  Place place(size_t block_in_chunk, uint32_t sub_block) const {
    if (resolved_) {
      for (size_t p = resolved_->start[block_in_chunk]; p < resolved_->start[block_in_chunk + 1]; p++) {
        const Piece& piece = resolved_->pieces[p];
        if (!(piece.mask >> sub_block & 1)) continue;
        return {chain_->sources()[piece.source]->file.get(), identities_[piece.source],
                (uint64_t{piece.index} << geometry_->block_shift()) +
                    (uint64_t{sub_block} << geometry_->sub_block_shift())};
      }
    }
    return {};
  }

 private:
  ChunkOfChain(const Chain& chain, const Geometry& geometry) : chain_(&chain), geometry_(&geometry) {}
  const Chain* chain_;
  const Geometry* geometry_;
  std::shared_ptr<const ResolvedChunk> resolved_;
  std::vector<std::pair<dev_t, ino_t>> identities_;
};

Result<void> read_place(const Place& place, char* to, size_t length) {
  if (!place.file) {
    memset(to, 0, length);
    return {};
  }
  return place.file->read_all(place.offset, to, length);
}

bool all_zero(const char* bytes, size_t length) {
  return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

}  // namespace

// Step 1 for one root. Where somebody merges in either base, both chains are opened anew.
Result<void> ImageState::take_in_differences(const Layer& root, const std::shared_ptr<Table>& table,
                                             const std::function<bool(uint64_t chunk)>& go_on) {
  const uint32_t length = geometry.sub_block_size();
  std::vector<char> old_bytes(geometry.block_size());
  std::vector<char> new_bytes(length);
  std::shared_ptr<const Chain> old_chain, new_chain;
  uint64_t built = 0;  // the epoch of both
  const uint64_t entries = geometry.blocks_for(root.size);

  // Whether what was seen in the two chains need not have been so: the gate is open meanwhile, and somebody else who found
  // them stale may have opened others.
  const auto chains_are_stale = [&] {
    const std::shared_lock lock(gate);
    return !old_chain || built != epoch || is_stale();
  };

  // The sub-blocks of a block that must be taken in, and of these the ones that are zeros; `old_bytes` has the others.
  const auto differences = [&](const ChunkOfChain& from, const ChunkOfChain& to, uint64_t block, uint16_t own,
                               uint16_t* zeros) -> Result<uint16_t> {
    const size_t i = block % kBlocksPerChunk;
    uint16_t wanted = 0;
    for (uint32_t number = 0; number < geometry.sub_blocks(); number++) {
      if (!(((from.mask(i) | to.mask(i)) & ~own) >> number & 1)) continue;
      const Place before = from.place(i, number);
      const Place after = to.place(i, number);
      if (before.same_as(after)) continue;
      char* bytes = old_bytes.data() + (size_t{number} << geometry.sub_block_shift());
      PCOW_TRY(from.verify(block, number));
      PCOW_TRY(to.verify(block, number));
      PCOW_TRY(read_place(before, bytes, length));
      PCOW_TRY(read_place(after, new_bytes.data(), length));
      if (memcmp(bytes, new_bytes.data(), length) == 0) continue;
      wanted |= static_cast<uint16_t>(1u << number);
      if (all_zero(bytes, length)) *zeros |= static_cast<uint16_t>(1u << number);
    }
    return wanted;
  };

  const auto take_in = [&](uint64_t block, uint16_t wanted, uint16_t zeros) -> Result<void> {
    const uint64_t chunk = block / kBlocksPerChunk;
    PCOW_TRY(table->ensure(chunk));
    const std::lock_guard lock(chunk_lock(block));
    const Entry entry = Entry::unpack(table->load(block));
    wanted &= static_cast<uint16_t>(~entry.written);  // the active layer may have been written meanwhile
    if (!wanted) return {};
    if (!entry.index && (wanted & ~zeros) == 0) {
      make_zero(table.get(), block, entry, wanted);
      return {};
    }
    const auto owned = make_own(table, block, entry, {wanted}, Purpose::kData, [&](uint64_t place) {
      return geometry.each_run(wanted, [&](uint32_t within, uint32_t length) {
        return file->write(place + within, old_bytes.data() + within, length);
      });
    });
    return owned ? Result<void>() : owned.error();
  };

  const auto do_chunk = [&](uint64_t chunk) -> Result<void> {
    auto from = ChunkOfChain::of(*old_chain, geometry, chunk);
    if (!from) return from.error();
    auto to = ChunkOfChain::of(*new_chain, geometry, chunk);
    if (!to) return to.error();
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, entries);
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++) {
      const size_t i = block % kBlocksPerChunk;
      const uint16_t own = Entry::unpack(table->load(block)).written;
      if (!((from->mask(i) | to->mask(i)) & ~own)) continue;
      uint16_t zeros = 0;
      auto wanted = differences(*from, *to, block, own, &zeros);
      if (!wanted) return wanted.error();
      if (!*wanted) continue;
      if (chains_are_stale()) return stale_error();
      PCOW_TRY(take_in(block, *wanted, zeros));
    }
    return {};
  };

  const uint64_t chunks = (entries + kBlocksPerChunk - 1) / kBlocksPerChunk;
  for (uint64_t chunk = 0; chunk < chunks; chunk++) {
    if (!go_on(chunk))
      return Error(Code::kCancelled, path + ": the change of its base was interrupted; it stands where it stood");
    for (int round = 0;; round++) {
      if (chains_are_stale()) {
        PCOW_TRY(refresh());
        const std::shared_lock lock(gate);
        old_chain = std::make_shared<Chain>(geometry, base_sources);
        new_chain = coming->chain;
        built = epoch;
      }
      const bool held = old_chain->may_hold(chunk) || new_chain->may_hold(chunk);
      auto done = held ? do_chunk(chunk) : Result<void>();
      if (done && !chains_are_stale()) break;
      if (!done && (done.error().code != Code::kBaseChanged || round == kStaleRounds)) return done;
    }
  }
  return {};
}

Result<void> Image::rebase(const BaseSpec& spec, bool has_base, const Progress& progress) {
  ImageState& state = *state_;
  return state.change_structure([&]() -> Result<void> {
    // A root that is being merged away shares blocks with its heir, which writes them.
    PCOW_TRY(state.finish_deletions("another base"));
    ImageState::Prepared prepared;
    if (has_base) {
      auto reference = state.reference_to(spec);
      if (!reference) return reference.error();
      prepared.base = std::move(*reference);
    }
    auto next = state.open_chain(prepared.base, {});
    if (!next) return next.error();
    {
      const auto chain = std::make_shared<Chain>(state.geometry, next->sources);
      const std::unique_lock lock(state.gate);
      state.coming = Coming{prepared.base, std::move(*next), chain};
    }

    std::vector<Layer> roots;
    uint64_t total = 0;
    for (const Layer& layer : state.directory.layers) {
      if (layer.parent) continue;
      roots.push_back(layer);
      total += layer.size;
    }
    uint64_t before = 0;
    std::vector<std::shared_ptr<Table>> tables;
    const auto take_in_all = [&]() -> Result<void> {
      for (const Layer& root : roots) {
        std::shared_ptr<Table> table = state.active;
        if (root.id != state.directory.active) {
          auto mapped = Table::map(state.file, root.table_offset, state.geometry.blocks_for(root.size), true);
          if (!mapped) return mapped.error();
          table = std::move(*mapped);
        }
        tables.push_back(table);
        const auto go_on = [&](uint64_t chunk) {
          return !progress ||
                 progress(before + std::min(root.size, chunk * kBlocksPerChunk << state.geometry.block_shift()), total);
        };
        PCOW_TRY(state.take_in_differences(root, table, go_on));
        before += root.size;
      }
      return keeps(Rule::kTakenInBeforeSuperblock) ? state.sync() : Result<void>();
    };
    Result<void> outcome = take_in_all();
    {
      const std::unique_lock lock(state.gate);
      Coming next_base = std::move(*state.coming);
      state.coming.reset();
      if (outcome) {
        Superblock superblock = state.next_superblock();
        superblock.base = prepared.base;
        outcome = state.put_superblock(superblock);
        if (outcome) {
          state.superblock = superblock;
          state.adopt_bases(std::move(next_base.bases));
        }
      }
      // Chains that are built from here on see what the frozen roots have taken in.
      for (size_t i = 0; i < tables.size(); i++) {
        if (roots[i].id == state.directory.active) continue;
        state.sources[static_cast<size_t>(state.directory.find(roots[i].id) - state.directory.layers.data())] =
            state.source_of(roots[i], tables[i]->present());
      }
      state.epoch++;
      state.below = state.chain_from(state.directory.active_layer().parent);
    }
    PCOW_TRY(outcome);
    PCOW_TRY(state.file->sync());
    if (progress) progress(total, total);
    return {};
  });
}

}  // namespace pcow
