#include "engine/check/losses.h"

#include <algorithm>
#include <array>
#include <bit>
#include <unordered_map>

#include "engine/format/entry.h"
#include "engine/format/table.h"

namespace pcow {
namespace {

// For each block of a chunk: the sub-blocks that read wrongly in a layer.
struct Wrong {
  std::array<uint16_t, kBlocksPerChunk> gone{};
  std::array<uint16_t, kBlocksPerChunk> doubtful{};
};

// Joins adjoining ranges; ranges beyond the limit are only counted.
void append(Loss* loss, const LostRange& range) {
  (range.certain ? loss->gone : loss->doubtful) += range.length;
  if (!loss->ranges.empty()) {
    LostRange& last = loss->ranges.back();
    if (last.certain == range.certain && last.offset + last.length == range.offset) {
      last.length += range.length;
      return;
    }
  }
  if (loss->ranges.size() < kListedFindings) loss->ranges.push_back(range);
}

struct Reading {
  Loss loss;
  uint64_t size;
  uint64_t doubtful_from;  // bytes
};

void append_chunk(Reading* view, const Geometry& geometry, uint64_t chunk, const Wrong& wrong) {
  const uint64_t end = std::min(view->size, view->doubtful_from);
  for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
    const auto any = static_cast<uint16_t>(wrong.gone[i] | wrong.doubtful[i]);
    for (uint16_t left = any; left; left &= static_cast<uint16_t>(left - 1)) {
      const int bit = std::countr_zero(left);
      const uint64_t offset = ((chunk * kBlocksPerChunk + i) << geometry.block_shift()) +
                              (static_cast<uint64_t>(bit) << geometry.sub_block_shift());
      if (offset >= end) return;
      const uint64_t length = std::min(uint64_t{1} << geometry.sub_block_shift(), end - offset);
      append(&view->loss, {offset, length, (wrong.gone[i] >> bit & 1) != 0});
    }
  }
}

}  // namespace

void Losses::add(uint64_t layer, uint64_t block, uint16_t gone, uint16_t doubtful) {
  if (!gone && !doubtful) return;
  pieces_[block / kBlocksPerChunk].push_back(
      {layer, static_cast<uint32_t>(block % kBlocksPerChunk), gone, doubtful});
}

void Losses::add_doubtful_from(uint64_t layer, uint64_t block) {
  const auto [it, is_new] = doubtful_from_.try_emplace(layer, block);
  if (!is_new) it->second = std::min(it->second, block);
}

Result<std::vector<Loss>> Losses::of_views(const File& file, const Geometry& geometry,
                                           const LayerDirectory& directory) const {
  std::unordered_map<uint64_t, Reading> views;
  for (const Layer& layer : directory.layers) {  // parents come before children
    Reading view{{layer.id, layer.name, 0, 0, {}}, layer.size, layer.size};
    if (const auto own = doubtful_from_.find(layer.id); own != doubtful_from_.end())
      view.doubtful_from = std::min(view.doubtful_from, own->second << geometry.block_shift());
    // The part that a parent does not have, because it is smaller, is not in doubt because of the
    // parent.
    if (const auto parent = views.find(layer.parent);
        parent != views.end() && parent->second.doubtful_from < parent->second.size)
      view.doubtful_from = std::min(view.doubtful_from, parent->second.doubtful_from);
    views.emplace(layer.id, std::move(view));
  }
  for (const auto& [chunk, pieces] : pieces_) {
    // By layer; layers without wrong sub-blocks are absent.
    std::unordered_map<uint64_t, Wrong> wrong;
    for (const Layer& layer : directory.layers) {
      Wrong own;
      const auto parent = wrong.find(layer.parent);
      if (parent != wrong.end()) {
        own = parent->second;
        EntryPage page;
        PCOW_TRY(read_entry_page(file, layer.table_offset, geometry.blocks_for(layer.size), chunk,
                                 &page));
        for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
          own.gone[i] &= static_cast<uint16_t>(~Entry::unpack(page[i]).written);
          own.doubtful[i] &= static_cast<uint16_t>(~Entry::unpack(page[i]).written);
        }
      }
      bool any = parent != wrong.end();
      for (const Piece& piece : pieces) {
        if (piece.layer != layer.id) continue;
        own.gone[piece.block] |= piece.gone;
        own.doubtful[piece.block] |= piece.doubtful;
        any = true;
      }
      if (!any) continue;
      append_chunk(&views.at(layer.id), geometry, chunk, own);
      wrong.emplace(layer.id, own);
    }
  }
  std::vector<Loss> losses;
  for (const Layer& layer : directory.layers) {
    Reading& view = views.at(layer.id);
    if (view.doubtful_from < view.size)
      append(&view.loss, {view.doubtful_from, view.size - view.doubtful_from, false});
    if (!layer.hidden && !view.loss.ranges.empty()) losses.push_back(std::move(view.loss));
  }
  return losses;
}

}  // namespace pcow
