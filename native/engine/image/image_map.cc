// Where the bytes of an image are, layer by layer, and which of them may differ between two of its
// layers.
//
// A walk goes chunk by chunk, and skips chunks for which no layer has a table page: for an empty
// image of any size it only looks at the holes of its tables. It is made in batches, each under the
// gate like a read, so that a long walk blocks no other thread for long.

#include <algorithm>
#include <shared_mutex>

#include "engine/image/image_state.h"

namespace pcow {
namespace {

// A batch ends with the chunk in which it reaches one of these.
constexpr size_t kBatchExtents = 2048;
constexpr uint64_t kBatchPages = 512;

// A layer of a walk: a frozen one, or the active one, which is read through its table.
class WalkedLayer {
 public:
  WalkedLayer(std::shared_ptr<const Source> source)
      : source_(std::move(source)) {
  }  // NOLINT: implicit, because a link of a chain is a walked layer
  WalkedLayer(std::shared_ptr<File> file, std::shared_ptr<Table> table, uint64_t offset,
              bool written_by_us, bool only_durable, bool lazy)
      : file_(std::move(file)),
        table_(std::move(table)),
        offset_(offset),
        written_by_us_(written_by_us),
        only_durable_(only_durable),
        lazy_(lazy) {}

  // The first chunk from `chunk` on that may hold entries; `end` if there is none before it.
  Result<uint64_t> next_chunk(uint64_t chunk, uint64_t end) const {
    if (!table_) {
      const auto after =
          std::upper_bound(source_->present.begin(), source_->present.end(), chunk,
                           [](uint64_t c, const ChunkRange& range) { return c < range.end; });
      return after == source_->present.end() ? end : std::min(end, std::max(chunk, after->first));
    }
    const uint64_t table_end = std::min(end, table_->chunks());
    if (chunk >= table_end) return end;
    if (written_by_us_) {
      while (chunk < table_end && !table_->may_hold(chunk)) chunk++;
    } else {
      auto data = file_->next_data(offset_ + chunk * kPageSize, offset_ + table_end * kPageSize);
      if (!data) return data;
      chunk = (*data - offset_) / kPageSize;
    }
    return chunk < table_end ? chunk : end;
  }

  Result<void> load(uint64_t chunk, const Geometry& geometry,
                    std::array<Entry, kBlocksPerChunk>* entries) const {
    EntryPage page{};
    if (table_) {
      const uint64_t count =
          std::min<uint64_t>(kBlocksPerChunk, table_->entries() - chunk * kBlocksPerChunk);
      for (uint64_t i = 0; i < count; i++) page[i] = table_->load(chunk * kBlocksPerChunk + i);
    } else {
      PCOW_TRY(read_entry_page(file(), source_->table_offset, source_->entries, chunk, &page));
    }
    const bool only_durable = table_ ? only_durable_ : source_->only_durable;
    const bool lazy = table_ ? lazy_ : source_->lazy;
    for (size_t i = 0; i < kBlocksPerChunk; i++) {
      const uint64_t word = only_durable ? Entry::unpack(page[i]).as_durable().pack() : page[i];
      auto checked = checked_entry(word, geometry, file(), lazy, chunk * kBlocksPerChunk + i);
      if (!checked) return checked.error();
      (*entries)[i] = *checked;
    }
    return {};
  }

 private:
  const File& file() const { return table_ ? *file_ : *source_->file; }

  std::shared_ptr<const Source> source_;  // null: the active layer, which the other fields describe
  std::shared_ptr<File> file_;
  std::shared_ptr<Table> table_;
  uint64_t offset_ = 0;  // of the table in the file, bytes
  bool written_by_us_ = false;
  bool only_durable_ = false;
  bool lazy_ = false;
};

// A run of sub-blocks of one block that one layer holds.
struct Held {
  uint16_t mask;
  uint32_t index;
  bool remote;
  uint64_t depth;
};

// Builds extents from sub-blocks that come in ascending order.
class ExtentList {
 public:
  ExtentList(std::vector<MapExtent>* extents, uint64_t size) : extents_(extents), size_(size) {}

  void add(MapExtent extent) {
    if (extent.offset >= size_) return;
    extent.length = std::min(extent.length, size_ - extent.offset);
    if (!extents_->empty()) {
      MapExtent& last = extents_->back();
      if (last.offset + last.length == extent.offset && last.kind == extent.kind &&
          last.depth == extent.depth && last.remote == extent.remote &&
          (extent.kind != ExtentKind::kData || extent.remote ||
           last.file_offset + last.length == extent.file_offset)) {
        last.length += extent.length;
        return;
      }
    }
    extents_->push_back(extent);
  }

 private:
  std::vector<MapExtent>* const extents_;
  const uint64_t size_;
};

struct Walk {
  std::vector<WalkedLayer> chain;  // the layers that the walked layer reads from, nearest first
  std::vector<LayerRef> names;     // of the chain, for messages
  uint64_t first = 0;              // the depths [first, end) are looked at
  uint64_t end = 0;
  std::vector<WalkedLayer> others;  // ranges that these layers hold are of interest as well
  bool only_held = false;           // leave out ranges that none of these layers holds
  uint64_t size = 0;                // bytes
};

// The sub-blocks of a chunk, resolved block by block through the layers of a walk.
class ChunkOfWalk {
 public:
  explicit ChunkOfWalk(const Geometry& geometry) : geometry_(geometry) {}

  // Adds a layer below those that were added before. `interesting`: the sub-blocks that it holds
  // are of interest. `depth` names the layer.
  void add(const std::array<Entry, kBlocksPerChunk>& entries, uint64_t depth, bool interesting) {
    for (size_t i = 0; i < kBlocksPerChunk; i++) {
      if (interesting) wanted_[i] |= entries[i].written;
      const auto fresh = static_cast<uint16_t>(entries[i].written & ~settled_[i]);
      if (!fresh) continue;
      settled_[i] |= fresh;
      held_[i].push_back({fresh, entries[i].index, entries[i].remote, depth});
    }
  }
  void want(const std::array<Entry, kBlocksPerChunk>& entries) {
    for (size_t i = 0; i < kBlocksPerChunk; i++) wanted_[i] |= entries[i].written;
  }

  void list(uint64_t chunk, bool only_wanted, ExtentList* extents) const {
    for (size_t i = 0; i < kBlocksPerChunk; i++) {
      const uint64_t start = (chunk * kBlocksPerChunk + i) << geometry_.block_shift();
      if (only_wanted && !wanted_[i]) continue;
      if (held_[i].size() == 1 && held_[i][0].mask == geometry_.full_mask() &&
          (wanted_[i] == held_[i][0].mask)) {
        extents->add(extent(start, 0, geometry_.sub_blocks(), &held_[i][0]));
        continue;
      }
      for (uint32_t number = 0; number < geometry_.sub_blocks();) {
        const Held* held = holder(i, number);
        const bool wanted = wanted_[i] >> number & 1;
        uint32_t end = number + 1;
        while (end < geometry_.sub_blocks() && holder(i, end) == held &&
               (wanted_[i] >> end & 1) == wanted)
          end++;
        if (wanted || !only_wanted) extents->add(extent(start, number, end, held));
        number = end;
      }
    }
  }

 private:
  const Held* holder(size_t i, uint32_t number) const {
    for (const Held& held : held_[i])
      if (held.mask >> number & 1) return &held;
    return nullptr;
  }
  MapExtent extent(uint64_t start, uint32_t number, uint32_t end, const Held* held) const {
    const uint64_t within = uint64_t{number} << geometry_.sub_block_shift();
    MapExtent made;
    made.offset = start + within;
    made.length = uint64_t{end - number} << geometry_.sub_block_shift();
    made.kind = !held                         ? ExtentKind::kHole
                : held->index || held->remote ? ExtentKind::kData
                                              : ExtentKind::kZero;
    made.remote = held && held->remote;
    if (held) made.depth = held->depth;
    if (held && held->index)
      made.file_offset = (uint64_t{held->index} << geometry_.block_shift()) + within;
    return made;
  }

  const Geometry& geometry_;
  std::array<uint16_t, kBlocksPerChunk> settled_{};
  std::array<uint16_t, kBlocksPerChunk> wanted_{};
  std::array<std::vector<Held>, kBlocksPerChunk> held_;
};

// One batch from `offset`, which is a multiple of the chunk's size, because every batch but the
// last ends with a chunk.
Result<ExtentBatch> walk_batch(const Geometry& geometry, const Walk& walk, uint64_t offset) {
  ExtentBatch batch;
  batch.size = walk.size;
  ExtentList extents(&batch.extents, walk.size);
  const uint64_t chunk_size = uint64_t{kBlocksPerChunk} << geometry.block_shift();
  const uint64_t chunks = geometry.chunks_for(walk.size);
  uint64_t pages = 0;
  uint64_t chunk = std::min(offset / chunk_size, chunks);
  const auto nearest = [&](const std::vector<WalkedLayer>& layers, uint64_t from,
                           uint64_t end) -> Result<uint64_t> {
    uint64_t next = chunks;
    for (uint64_t i = from; i < end && next > chunk; i++) {
      auto held = layers[i].next_chunk(chunk, next);
      if (!held) return held;
      next = std::min(next, *held);
    }
    return next;
  };
  while (chunk < chunks && batch.extents.size() < kBatchExtents && pages < kBatchPages) {
    auto in_chain = nearest(walk.chain, walk.first, walk.end);
    if (!in_chain) return in_chain.error();
    auto in_others = nearest(walk.others, 0, walk.others.size());
    if (!in_others) return in_others.error();
    const uint64_t next = std::min(*in_chain, *in_others);
    if (next > chunk) {
      if (!walk.only_held)
        extents.add({chunk * chunk_size, (next - chunk) * chunk_size, ExtentKind::kHole, 0, 0});
      chunk = next;
      continue;
    }
    ChunkOfWalk resolved(geometry);
    std::array<Entry, kBlocksPerChunk> entries;
    const auto each = [&](const WalkedLayer& layer, const auto& use) -> Result<void> {
      pages++;  // also for a layer that only says that it holds nothing: a chain may have thousands
      auto held = layer.next_chunk(chunk, chunk + 1);
      if (!held) return held.error();
      if (*held != chunk) return {};
      PCOW_TRY(layer.load(chunk, geometry, &entries));
      use();
      return {};
    };
    // In a walk over changes, the layers from `end` on only show what is read where the others hold
    // nothing.
    const uint64_t last = walk.others.empty() ? walk.end : walk.chain.size();
    for (uint64_t depth = walk.first; depth < last; depth++)
      PCOW_TRY(each(walk.chain[depth], [&] { resolved.add(entries, depth, depth < walk.end); }));
    for (const WalkedLayer& other : walk.others)
      PCOW_TRY(each(other, [&] { resolved.want(entries); }));
    resolved.list(chunk, walk.only_held, &extents);
    chunk++;
  }
  batch.next = std::min(chunk * chunk_size, walk.size);
  return batch;
}

WalkedLayer walked(const ImageState& state, const Layer& layer) {
  const LayerDirectory& directory = state.layers.directory();
  if (layer.id == directory.active)
    return {state.file,       state.layers.active(),       layer.table_offset,
            state.writable(), state.layers.only_durable(), state.layers.is_lazy()};
  return state.layers.source_in_use(layer.id);
}

// The chain of a layer of this image, for a walk.
Walk chain_walk(const ImageState& state, const Layer& top) {
  Walk walk;
  walk.size = top.size;
  for (const Layer* layer = &top; layer; layer = state.layers.directory().find(layer->parent)) {
    walk.chain.push_back(walked(state, *layer));
    walk.names.push_back({state.path, layer->name, layer->id});
  }
  for (const auto& source : state.bases.current().sources) walk.chain.emplace_back(source);
  walk.names.insert(walk.names.end(), state.bases.current().names.begin(),
                    state.bases.current().names.end());
  return walk;
}

Result<const Layer*> layer_of(const ImageState& state, const View* view) {
  if (!view) return &state.layers.active_layer();
  return state.layers.layer_in_view(*view);
}

// FNV-1a of the files and ids.
uint64_t state_of(const std::vector<LayerRef>& chain) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](uint8_t byte) { hash = (hash ^ byte) * 0x100000001b3; };
  for (const LayerRef& link : chain) {
    for (const char c : link.path) add(static_cast<uint8_t>(c));
    for (uint32_t shift = 0; shift < 64; shift += 8) add(static_cast<uint8_t>(link.layer >> shift));
  }
  return hash;
}

// As with a read, the result counts only if no superblock of the chain has changed meanwhile.
template <typename Make>
Result<ExtentBatch> walk_image(ImageState& state, uint64_t offset, const Make& make) {
  for (int round = 0; round < kStaleRounds; round++) {
    {
      const std::shared_lock lock(state.gate);
      if (state.layers.is_closed()) return state.closed_error();
      if (!state.layers.is_stale()) {
        Result<Walk> walk = make();
        if (!walk) return walk.error();
        auto batch = walk_batch(state.geometry, *walk, offset);
        if (auto whole = state.layers.untorn(); !whole && (round || state.writable()))
          return whole.error();
        if (batch) {
          batch->chain_state = state_of(walk->names);
          batch->chain = std::move(walk->names);
        }
        if (!state.layers.is_stale()) return batch;
      }
    }
    PCOW_TRY(state.layers.refresh());
  }
  return Error(Code::kIo, state.path + " changes faster than it can be read");
}

}  // namespace

Result<std::vector<LayerRef>> Image::chain(const View* view) const {
  ImageState& state = *state_;
  PCOW_TRY(state.failures.noted(state.layers.bring_up_to_date()));
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  auto layer = layer_of(state, view);
  if (!layer) return layer.error();
  return chain_walk(state, **layer).names;
}

Result<ExtentBatch> Image::map(const View* view, uint64_t offset, DepthRange depths) const {
  ImageState& state = *state_;
  return state.failures.noted(walk_image(state, offset, [&]() -> Result<Walk> {
    auto layer = layer_of(state, view);
    if (!layer) return layer.error();
    Walk walk = chain_walk(state, **layer);
    walk.end = std::min<uint64_t>(depths.end, walk.chain.size());
    walk.first = std::min(depths.first, walk.end);
    return walk;
  }));
}

Result<ExtentBatch> Image::changes(const View* from, const View* to, uint64_t offset) const {
  ImageState& state = *state_;
  return state.failures.noted(walk_image(state, offset, [&]() -> Result<Walk> {
    auto before = layer_of(state, from);
    if (!before) return before.error();
    auto after = layer_of(state, to);
    if (!after) return after.error();
    Walk walk = chain_walk(state, **after);
    walk.only_held = true;
    // Goes down from both to the nearest layer that they share: what the layers on both ways hold
    // may differ.
    const Layer* left = *before;
    const Layer* right = *after;
    while (left != right) {
      if (right && (!left || left->id < right->id)) {
        walk.end++;
        right = state.layers.directory().find(right->parent);
      } else {
        walk.others.push_back(walked(state, *left));
        left = state.layers.directory().find(left->parent);
      }
    }
    return walk;
  }));
}

Result<ExtentBatch> Image::changes_to_base(const View* to, uint64_t offset, uint64_t end) const {
  ImageState& state = *state_;
  return state.failures.noted(walk_image(state, offset, [&]() -> Result<Walk> {
    auto layer = layer_of(state, to);
    if (!layer) return layer.error();
    Walk walk = chain_walk(state, **layer);
    walk.only_held = true;
    walk.size = std::min(walk.size, end);
    walk.end = walk.chain.size() - state.bases.current().sources.size();
    return walk;
  }));
}

}  // namespace pcow
