// Checksums of frozen layers: making them, taking them away, and reading everything that has some,
// to find damage.
//
// Order of making those of a layer (docs/format.md, "What a writer does, in which order"):
//   1. A range of free blocks gets the pages. The layer is read for them while others use it.
//   2. The layer directory that names the range is written, and all of that is made durable.
//   3. The superblock is written. Then the range that the layer had before is released.
// A crash before 3 leaves free blocks. A sub-block that has a checksum keeps it: damaged data never
// gets a matching checksum.

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "engine/check/scrub.h"
#include "engine/format/crc32c.h"
#include "engine/image/image_state.h"
#include "engine/rules.h"

namespace pcow {
namespace {

constexpr uint64_t kBatch = uint64_t{8} << 20;  // bytes that are read while the gate is held once

uint64_t bytes_of(uint16_t mask, const Geometry& geometry) {
  return static_cast<uint64_t>(std::popcount(mask)) << geometry.sub_block_shift();
}

// The sub-blocks that a checksum can cover.
uint16_t durable_data(const Entry& entry) {
  return entry.index ? static_cast<uint16_t>(entry.written & entry.durable) : uint16_t{0};
}

// Whether the layer holds everything that the checksum covers, and more, so that a larger checksum
// can replace it.
bool can_grow(uint16_t covered, uint16_t held) { return covered != held && (covered & ~held) == 0; }

ChecksumPage page_of(const Source& source, uint64_t chunk) {
  if (!source.checksums) return {};
  auto page = source.checksums->page(chunk);
  return page ? **page : ChecksumPage{};
}

struct FrozenLayer {
  Layer layer;
  std::shared_ptr<const Source> source;
  bool spent;  // is being merged away, or will be
};
using Wanted = std::function<uint16_t(size_t block_in_chunk, const Entry&)>;  // sub-blocks

std::vector<uint64_t> frozen_layers(const ImageState& state) {
  const std::shared_lock lock(state.gate);
  std::vector<uint64_t> ids;
  for (const Layer& layer : state.layers.directory().layers)
    if (layer.id != state.layers.directory().active) ids.push_back(layer.id);
  return ids;
}

std::optional<FrozenLayer> frozen_layer(const ImageState& state, uint64_t id) {
  const std::shared_lock lock(state.gate);
  const Layer* layer = state.layers.directory().find(id);
  if (!layer || state.layers.is_closed()) return std::nullopt;
  return FrozenLayer{*layer, state.layers.source_in_use(id),
                     state.layers.directory().is_spent(*layer)};
}

Result<std::array<Entry, kBlocksPerChunk>> frozen_entries(const Geometry& geometry,
                                                          const Source& source, uint64_t chunk) {
  std::array<Entry, kBlocksPerChunk> entries{};
  if (!contains(source.present, chunk)) return entries;
  EntryPage page;
  PCOW_TRY(read_entry_page(*source.file, source.table_offset, source.entries, chunk, &page));
  for (size_t i = 0; i < kBlocksPerChunk; i++) {
    const uint64_t word =
        source.only_durable ? Entry::unpack(page[i]).as_durable().pack() : page[i];
    if (auto checked =
            checked_entry(word, geometry, *source.file, source.lazy, chunk * kBlocksPerChunk + i))
      entries[i] = *checked;
  }
  return entries;
}

// `wanted` says which sub-blocks of a block count, and `use` gets their checksums. Fails with
// kNotFound if the layer is no longer the one in hand: it was merged away, or has other checksums.
Result<void> checksum_chunk(const ImageState& state, const FrozenLayer& in_hand, uint64_t chunk,
                            bool from_disk, const Wanted& wanted,
                            const std::function<bool()>& go_on,
                            const std::function<void(const HeldBlock&, Result<uint32_t>)>& use) {
  const uint32_t shift = state.geometry.block_shift();
  for (size_t next = 0; next < kBlocksPerChunk;) {
    if (!go_on()) return Error(Code::kCancelled, state.path + ": interrupted");
    std::vector<std::pair<HeldBlock, Result<uint32_t>>> found;
    {
      const std::shared_lock lock(state.gate);
      if (state.layers.is_closed() || state.checksum_work.is_ending()) return state.closed_error();
      const Layer* layer = state.layers.directory().find(in_hand.layer.id);
      if (!layer || layer->checksums != in_hand.layer.checksums ||
          layer->hidden != in_hand.layer.hidden || state.layers.is_own_stale())
        return Error(Code::kNotFound, state.path + ": the layer has changed");
      auto entries = frozen_entries(state.geometry, *in_hand.source, chunk);
      if (!entries) return entries.error();
      std::vector<HeldBlock> blocks;
      for (; next < kBlocksPerChunk && blocks.size() << shift < kBatch; next++) {
        const uint16_t mask = wanted(next, (*entries)[next]);
        if (mask) blocks.push_back({chunk * kBlocksPerChunk + next, (*entries)[next].index, mask});
      }
      const auto for_each_place = [&](const auto& advise) {
        for (const HeldBlock& held : blocks)
          advise(uint64_t{held.index} << shift, state.geometry.block_size());
      };
      if (from_disk)
        for_each_place(
            [&](uint64_t at, uint64_t length) { state.file->forget_cached(at, length); });
      for_each_place([&](uint64_t at, uint64_t length) { state.file->read_ahead(at, length); });
      checksum_blocks(*state.file, state.geometry, blocks,
                      [&](const HeldBlock& held, Result<uint32_t> sum) {
                        found.emplace_back(held, std::move(sum));
                      });
      if (from_disk)
        for_each_place(
            [&](uint64_t at, uint64_t length) { state.file->forget_cached(at, length); });
      if (state.layers.is_own_stale())
        return Error(Code::kNotFound, state.path + ": the layer has changed");
    }
    for (auto& [held, sum] : found) use(held, std::move(sum));
  }
  return {};
}

// Whether the only child of a layer that is being merged away has taken a block over: it may have
// written into it since. A block loses its checksum before it is taken over, but an image of an
// older pcow may have kept it.
bool is_handed_over(const ImageState& state, const FrozenLayer& in_hand, uint64_t block,
                    uint32_t index) {
  const uint64_t chunk = block / kBlocksPerChunk;
  if (!in_hand.spent) return false;
  const Checksums now(state.file, state.geometry, in_hand.layer);
  if (auto page = now.page(chunk); page && !(*page)->covered[block % kBlocksPerChunk]) return true;
  const std::shared_lock lock(state.gate);
  for (const Layer& layer : state.layers.directory().layers) {
    if (layer.parent != in_hand.layer.id) continue;
    const uint64_t entries = state.geometry.blocks_for(layer.size);
    EntryPage page;
    return block < entries &&
           read_entry_page(*state.file, layer.table_offset, entries, chunk, &page) &&
           Entry::unpack(page[block % kBlocksPerChunk]).index == index;
  }
  return false;
}

Result<uint64_t> count_missing(const Geometry& geometry, const FrozenLayer& in_hand) {
  uint64_t missing = 0;
  for (const auto& [first, end] : in_hand.source->present) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
      auto entries = frozen_entries(geometry, *in_hand.source, chunk);
      if (!entries) return entries.error();
      const ChecksumPage page = page_of(*in_hand.source, chunk);
      for (size_t i = 0; i < kBlocksPerChunk; i++) {
        const uint16_t held = durable_data((*entries)[i]);
        if (can_grow(page.covered[i], held)) missing += bytes_of(held & ~page.covered[i], geometry);
      }
    }
  }
  return missing;
}

// Step 1 for a chunk. `*added` counts the bytes that are covered now and were not before.
Result<ChecksumPage> make_checksums(const ImageState& state, const FrozenLayer& in_hand,
                                    uint64_t chunk, const std::function<bool()>& go_on,
                                    uint64_t* added) {
  const ChecksumPage before = page_of(*in_hand.source, chunk);
  ChecksumPage after = before;
  // Of a block that is covered in part, that part is verified first.
  std::array<bool, kBlocksPerChunk> damaged{};
  const auto covered_part = [&](size_t i, const Entry& entry) {
    return can_grow(before.covered[i], durable_data(entry)) ? before.covered[i] : uint16_t{0};
  };
  PCOW_TRY(checksum_chunk(state, in_hand, chunk, false, covered_part, go_on,
                          [&](const HeldBlock& held, Result<uint32_t> sum) {
                            const size_t i = held.block % kBlocksPerChunk;
                            damaged[i] = !sum || *sum != before.sums[i];
                          }));
  const auto new_whole = [&](size_t i, const Entry& entry) {
    const uint16_t held = durable_data(entry);
    return can_grow(before.covered[i], held) && !damaged[i] ? held : uint16_t{0};
  };
  Result<void> outcome;
  const auto take = [&](const HeldBlock& held, Result<uint32_t> sum) {
    const size_t i = held.block % kBlocksPerChunk;
    if (!sum) {
      outcome = sum.error();
      return;
    }
    *added += bytes_of(held.mask & ~before.covered[i], state.geometry);
    after.covered[i] = held.mask;
    after.sums[i] = *sum;
  };
  PCOW_TRY(checksum_chunk(state, in_hand, chunk, false, new_whole, go_on, take));
  PCOW_TRY(outcome);
  return after;
}

Result<void> add_checksums_to(ImageState& state, const FrozenLayer& in_hand,
                              const std::function<bool(uint64_t added)>& go_on) {
  const Layer& layer = in_hand.layer;
  const uint64_t blocks = layer.table_length >> state.geometry.block_shift();
  auto range = state.space->allocate_range(blocks);
  if (!range) return range.error();
  const uint64_t first = *range;
  uint64_t added = 0;
  const auto write_pages = [&]() -> Result<void> {
    for (const auto& [first_chunk, end] : in_hand.source->present) {
      for (uint64_t chunk = first_chunk; chunk < end; chunk++) {
        auto page = make_checksums(
            state, in_hand, chunk, [&] { return go_on(added); }, &added);
        if (!page) return page.error();
        if (std::all_of(page->covered.begin(), page->covered.end(),
                        [](uint16_t mask) { return mask == 0; }))
          continue;
        const auto bytes = page->encode(layer.id, chunk);
        PCOW_TRY(state.file->write((first << state.geometry.block_shift()) + chunk * kPageSize,
                                   bytes.data(), bytes.size()));
      }
    }
    return {};
  };
  const auto make = [&]() -> Result<void> {
    if (first + blocks - 1 > kMaxBlockIndex)
      return Error(Code::kTooLarge, state.path + ": all block numbers of the format are in use");
    if (keeps(Rule::kChecksumsBeforeSuperblock)) PCOW_TRY(write_pages());
    if (added == 0 && keeps(Rule::kChecksumsBeforeSuperblock))
      return Error(Code::kNotFound, state.path + ": no checksum can be added");
    const auto holding = state.structure.lock();
    if (state.layers.is_closed()) return state.closed_error();
    PreparedStructure prepared;
    prepared.directory = state.layers.directory();
    Layer* now = prepared.directory.find(layer.id);
    if (!now || now->checksums != layer.checksums || state.layers.directory().is_spent(*now))
      return Error(Code::kNotFound, state.path + ": the layer has changed");
    now->checksums = static_cast<uint32_t>(first);
    return state.structure.change_to(&prepared);
  };
  auto made = make();
  const std::optional<FrozenLayer> now = frozen_layer(state, layer.id);
  if (now && now->layer.checksums == first) {
    if (layer.checksums) state.space->release(layer.checksums, blocks);
    if (made && !keeps(Rule::kChecksumsBeforeSuperblock)) made = write_pages();
  } else {
    state.space->release(first, blocks);
  }
  return made;
}

}  // namespace

Result<void> Image::add_checksums(const Progress& progress) {
  ImageState& state = *state_;
  const auto change = [&]() -> Result<void> {
    const auto one_at_a_time = state.checksum_work.begin();
    if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
    // Only durable data is covered: make the layers that were frozen last durable, too.
    PCOW_TRY(sync());
    uint64_t total = 0;
    std::vector<uint64_t> wanting;
    for (const uint64_t id : frozen_layers(state)) {
      const auto in_hand = frozen_layer(state, id);
      // The heir of a layer that is being merged away writes into the layer's blocks.
      if (!in_hand || in_hand->spent) continue;
      auto missing = count_missing(state.geometry, *in_hand);
      if (!missing) return missing.error();
      if (*missing) wanting.push_back(id);
      total += *missing;
    }
    uint64_t done = 0;
    for (const uint64_t id : wanting) {
      const auto in_hand = frozen_layer(state, id);
      if (!in_hand) continue;
      uint64_t of_layer = 0;
      const auto go_on = [&](uint64_t added) {
        of_layer = added;
        return !progress || progress(std::min(done + added, total), total);
      };
      // A layer that was deleted meanwhile needs none.
      auto added = add_checksums_to(state, *in_hand, go_on);
      if (!added && added.error().code == Code::kCancelled)
        return Error(
            Code::kCancelled,
            state.path +
                ": making checksums was interrupted; the snapshots that were finished keep theirs");
      if (!added && added.error().code != Code::kNotFound) return added;
      done += of_layer;
    }
    if (progress) progress(total, total);
    return {};
  };
  return state.failures.noted(change());
}

Result<void> Image::remove_checksums() {
  ImageState& state = *state_;
  const auto alone = state.checksum_work.begin();
  return state.structure.change([&]() -> Result<void> {
    const LayerDirectory before = state.layers.directory();
    if (!before.features()) return {};
    PreparedStructure prepared;
    prepared.directory = before;
    for (Layer& layer : prepared.directory.layers) layer.checksums = 0;
    PCOW_TRY(state.structure.change_to(&prepared));
    for (const Layer& layer : before.layers)
      if (layer.checksums)
        state.space->release(layer.checksums, layer.table_length >> state.geometry.block_shift());
    return {};
  });
}

namespace {

// One scrub, and what it has found so far.
class Scrub {
 public:
  Scrub(ImageState* state, const Progress& progress)
      : state_(*state), geometry_(state->geometry), progress_(progress) {}

  Result<ScrubReport> run() {
    PCOW_TRY(state_.layers.refresh());
    report_.path = state_.path;
    for (const uint64_t id : frozen_layers(state_)) PCOW_TRY(count(id));
    for (size_t number = 0; number < report_.layers.size(); number++)
      PCOW_TRY(look_at(report_.layers[number].id));
    if (progress_) progress_(total_, total_);
    return std::move(report_);
  }

 private:
  Result<void> count(uint64_t id) {
    const auto in_hand = frozen_layer(state_, id);
    if (!in_hand) return {};
    ScrubbedLayer layer;
    layer.id = id;
    layer.snapshot = in_hand->layer.name;
    auto missing = count_missing(geometry_, *in_hand);
    if (!missing) return missing.error();
    layer.missing = *missing;
    layer.has_checksums = in_hand->source->checksums != nullptr;
    if (layer.has_checksums) {
      auto present = present_chunks(*state_.file, begin_of(in_hand->layer),
                                    geometry_.blocks_for(in_hand->layer.size));
      if (!present) return present.error();
      for (const auto& [first, end] : *present) {
        for (uint64_t chunk = first; chunk < end; chunk++) {
          const ChecksumPage page = page_of(*in_hand->source, chunk);
          for (const uint16_t mask : page.covered) layer.covered += bytes_of(mask, geometry_);
        }
      }
    }
    total_ += layer.covered;
    report_.layers.push_back(std::move(layer));
    return {};
  }

  // The offset of a layer's checksums in the file, bytes.
  uint64_t begin_of(const Layer& layer) const {
    return uint64_t{layer.checksums} << geometry_.block_shift();
  }

  Result<void> look_at(uint64_t id) {
    for (uint64_t chunk = 0;; chunk++) {
      for (int round = 0;; round++) {
        const auto in_hand = frozen_layer(state_, id);
        if (!in_hand || !in_hand->source->checksums) return {};  // deleted meanwhile
        // A hole means that no checksums are there.
        const uint64_t begin = begin_of(in_hand->layer);
        const uint64_t end = begin + geometry_.chunks_for(in_hand->layer.size) * kPageSize;
        if (begin + chunk * kPageSize >= end) return {};
        auto data = state_.file->next_data(begin + chunk * kPageSize, end);
        if (!data) return data.error();
        if (*data == end) return {};
        chunk = std::max(chunk, (*data - begin) / kPageSize);
        ScrubReport of_chunk;
        auto looked = look_at_chunk(*in_hand, chunk, &of_chunk);
        if (looked) {
          take(std::move(of_chunk));
          break;
        }
        if (looked.error().code != Code::kNotFound || round == kStaleRounds) return looked;
        PCOW_TRY(state_.layers.refresh());
      }
    }
  }

  Result<void> look_at_chunk(const FrozenLayer& in_hand, uint64_t chunk, ScrubReport* found) {
    const auto page = in_hand.source->checksums->page(chunk);
    if (!page) {
      // The range may have been released meanwhile, and hold anything by now.
      const auto now = frozen_layer(state_, in_hand.layer.id);
      if (!now || now->layer.checksums != in_hand.layer.checksums || state_.layers.is_own_stale())
        return Error(Code::kNotFound, state_.path + ": the layer has changed");
      if (in_hand.spent) return {};  // it is being merged away, and may be half empty after a crash
      add(found, in_hand.layer, "checksums",
          "a page of its checksums is damaged: " + page.error().message,
          begin_of(in_hand.layer) + chunk * kPageSize, chunk * kBlocksPerChunk, kBlocksPerChunk);
      return {};
    }
    const ChecksumPage& sums = **page;
    const std::vector<char> zeros(geometry_.block_size());
    const auto covered = [&](size_t i, const Entry& entry) {
      const uint16_t mask = sums.covered[i];
      if (!mask) return mask;
      const uint64_t block = chunk * kBlocksPerChunk + i;
      // What was given back is protected by the digests of its source until it is filled again.
      if (entry.remote && !(mask & ~entry.written)) return uint16_t{0};
      const bool zero = entry.index == 0;
      if ((mask & ~entry.written) ||
          (zero && crc32c(zeros.data(), bytes_of(mask, geometry_)) != sums.sums[i])) {
        add(found, in_hand.layer, "entry", "the table lacks sub-blocks that have a checksum",
            in_hand.layer.table_offset + block * 8, block, 1);
        return uint16_t{0};
      }
      if (zero) found->verified += bytes_of(mask, geometry_);
      return zero ? uint16_t{0} : mask;
    };
    const auto judge = [&](const HeldBlock& held, const Result<uint32_t>& sum) {
      if (sum && *sum == sums.sums[held.block % kBlocksPerChunk]) {
        found->verified += bytes_of(held.mask, geometry_);
        return;
      }
      if (is_handed_over(state_, in_hand, held.block, held.index)) return;
      add(found, in_hand.layer, "block",
          sum ? "the bytes do not match their checksum"
              : "the bytes cannot be read: " + sum.error().message,
          uint64_t{held.index} << geometry_.block_shift(), held.block, 1);
    };
    const auto go_on = [&] {
      return !progress_ || progress_(std::min(total_, report_.verified + found->verified), total_);
    };
    return checksum_chunk(state_, in_hand, chunk, true, covered, go_on, judge);
  }

  void add(ScrubReport* found, const Layer& layer, const char* structure,
           const std::string& message, uint64_t file_offset, uint64_t block,
           uint64_t blocks) const {
    found->damages++;
    found->findings.push_back(
        damage_in(layer, geometry_, structure, message, file_offset, block, blocks));
  }

  void take(ScrubReport of_chunk) {
    report_.verified += of_chunk.verified;
    report_.damages += of_chunk.damages;
    for (Finding& finding : of_chunk.findings)
      if (report_.findings.size() < kListedFindings) report_.findings.push_back(std::move(finding));
  }

  ImageState& state_;
  const Geometry geometry_;
  const Progress& progress_;
  ScrubReport report_;
  uint64_t total_ = 0;
};

}  // namespace

Result<ScrubReport> Image::scrub(const Progress& progress) const {
  ImageState& state = *state_;
  auto report = Scrub(&state, progress).run();
  if (!report && report.error().code == Code::kCancelled)
    return Error(Code::kCancelled, "the scrub of " + state.path + " was interrupted");
  return report;
}

}  // namespace pcow
