#include "engine/image/layers.h"

#include <algorithm>

#include "engine/image/chain_reader.h"

namespace pcow {

// Nothing that is in use changes before everything that can fail is done: after a failure a reader
// continues with what it had.
Result<void> Layers::load(bool recovered) {
  const Geometry& geometry = image_.geometry;
  std::shared_ptr<GenerationWatch> watch;
  if (!image_.writable()) {
    auto started = GenerationWatch::start(*image_.file);
    if (!started) return started.error();
    watch = std::move(*started);
  }
  auto loaded = load_structure(*image_.file, watch.get());
  if (!loaded) return loaded.error();
  // After this writer has recovered the image everything counts, even if the host does not tell its
  // boot id.
  if (recovered) loaded->crashed = loaded->names_dropped = false;
  if (loaded->superblock.block_shift != geometry.block_shift())
    return Error(Code::kCorrupt, image_.path + ": its block size has changed");

  Chain::Sources fresh;
  for (const Layer& layer : loaded->directory.layers) {
    if (layer.id == loaded->directory.active) {
      fresh.push_back(nullptr);
      continue;
    }
    auto present =
        present_chunks(*image_.file, layer.table_offset, geometry.blocks_for(layer.size));
    if (!present) return present.error();
    fresh.push_back(
        make_source(image_.file, loaded->superblock, layer, loaded->crashed, std::move(*present)));
  }
  const Layer& layer = loaded->directory.active_layer();
  auto table = Table::map(image_.file, layer.table_offset, geometry.blocks_for(layer.size),
                          image_.writable());
  if (!table) return table.error();
  Result<BaseChain> bases = BaseChain{};
  if (!image_.options.without_bases)
    bases = bases_.open(loaded->superblock.base, bases_.held_files());
  if (!bases) return bases.error();

  superblocks_.adopt(std::move(loaded->superblock));
  directory_ = std::move(loaded->directory);
  crashed_ = loaded->crashed;
  names_dropped_ = loaded->names_dropped;
  if (watch) own_watch_ = Watch{watch, loaded->seen};
  active_ = std::move(*table);
  sources_ = std::move(fresh);
  bases_.adopt(std::move(*bases));
  renew_chains();
  return {};
}

Result<void> Layers::bring_up_to_date() {
  {
    const std::shared_lock lock(gate_);
    if (!is_stale()) return {};
  }
  return refresh();
}

Result<void> Layers::refresh() {
  const std::unique_lock lock(gate_);
  if (closed_) return image_.closed_error();
  if (!is_stale()) return {};
  if (!image_.writable()) {
    PCOW_TRY(load(false));
    content_generation_++;
    return {};
  }
  auto bases = bases_.open(superblocks_.current().base, bases_.held_files());
  if (!bases) return bases.error();
  auto coming = bases_.open_coming();
  if (!coming) return coming.error();
  if (*coming) bases_.adopt_coming(std::move(**coming));
  content_generation_++;
  bases_.adopt(std::move(*bases));
  renew_chains();
  return {};
}

void Layers::renew_sources() {
  for (size_t i = 0; i < sources_.size(); i++)
    if (sources_[i]) sources_[i] = source_of(directory_.layers[i], sources_[i]->present);
  renew_chains();
}

void Layers::renew_chains() {
  epoch_++;
  below_ = chain_from(active_layer().parent);
}

// Existing chains stay right unless a layer was removed or has got other checksums. A layer that
// becomes hidden counts as removed for its readers: the merge that follows lets its heir write into
// its blocks.
void Layers::adopt(NextLayers next) {
  const bool gone =
      std::any_of(directory_.layers.begin(), directory_.layers.end(), [&](const Layer& layer) {
        const Layer* after = next.directory.find(layer.id);
        return !after || after->hidden != layer.hidden || after->checksums != layer.checksums;
      });
  sources_ = next_sources(next);
  directory_ = std::move(next.directory);
  if (next.table) active_ = std::move(next.table);
  const bool anew = gone || next.bases;
  if (next.bases) bases_.adopt(std::move(*next.bases));
  if (anew) epoch_++;
  below_ = chain_from(active_layer().parent, anew ? nullptr : std::move(below_));
}

Chain::Sources Layers::next_sources(const NextLayers& next) const {
  Chain::Sources kept;
  for (const Layer& layer : next.directory.layers) {
    if (layer.id == next.directory.active) {
      kept.push_back(nullptr);  // read through its table, not through a chain
    } else if (layer.id == next.heir) {
      kept.push_back(next.heir_source);
    } else if (layer.id == directory_.active) {
      kept.push_back(source_of(layer, active_->present()));  // was frozen by this change
    } else if (directory_.find(layer.id)->checksums != layer.checksums) {
      kept.push_back(source_of(layer, source_in_use(layer.id)->present));
    } else {
      kept.push_back(source_in_use(layer.id));
    }
  }
  return kept;
}

void Layers::adopt_chunks(const Layer& layer, std::vector<ChunkRange> present) {
  sources_[static_cast<size_t>(directory_.find(layer.id) - directory_.layers.data())] =
      source_of(layer, std::move(present));
}

std::shared_ptr<const Source> Layers::source_of(const Layer& layer,
                                                std::vector<ChunkRange> present) const {
  return make_source(image_.file, superblocks_.current(), layer, crashed_, std::move(present));
}

const std::shared_ptr<const Source>& Layers::source_in_use(uint64_t layer) const {
  return sources_[static_cast<size_t>(directory_.find(layer) - directory_.layers.data())];
}

std::shared_ptr<const Chain> Layers::chain_from(uint64_t layer,
                                                std::shared_ptr<const Chain> continued) const {
  Chain::Sources chain;
  while (layer) {
    chain.push_back(source_in_use(layer));
    layer = directory_.find(layer)->parent;
  }
  const Chain::Sources& of_bases = bases_.current().sources;
  chain.insert(chain.end(), of_bases.begin(), of_bases.end());
  return std::make_shared<Chain>(image_.geometry, std::move(chain), std::move(continued));
}

Result<std::shared_ptr<const Chain>> Layers::chain_of(const View& view) const {
  const std::lock_guard lock(view.mutex_);
  if (view.chain_ && view.epoch_ == epoch_) return view.chain_;
  auto layer = layer_in_view(view);
  if (!layer) return layer.error();
  view.chain_ = chain_from(view.layer_);
  view.epoch_ = epoch_;
  return view.chain_;
}

// A deleted layer with one child may be merged into it at any time; then the child's writes go into
// its blocks. A deleted layer with several children does not change.
bool Layers::is_readable(const Layer& layer, bool by_name) const {
  return !layer.hidden || (!by_name && directory_.count_children(layer.id) > 1);
}

Result<const Layer*> Layers::layer_in_view(const View& view) const {
  const Layer* layer = directory_.find(view.layer());
  if (!layer || !is_readable(*layer, view.by_name()))
    return Error(Code::kNotFound,
                 image_.path + (view.by_name()
                                    ? ": that snapshot has been deleted"
                                    : ": the layer that is read no longer exists: its snapshot was "
                                      "deleted, or the image was rolled back or committed"));
  if (layer->size < view.size())
    return Error(Code::kBusy, image_.path + " became smaller while it was read");
  return layer;
}

Result<const Layer*> Layers::snapshot_called(const std::string& name) const {
  const Layer* layer = directory_.find(name);
  if (!layer) return Error(Code::kNotFound, image_.path + " has no snapshot named " + name);
  return layer;
}

bool Layers::active_is_empty() const {
  for (uint64_t chunk = 0; chunk < active_->chunks(); chunk++) {
    if (!active_->may_hold(chunk)) continue;
    const uint64_t end = std::min((chunk + 1) * kBlocksPerChunk, active_->entries());
    for (uint64_t block = chunk * kBlocksPerChunk; block < end; block++)
      if (active_->load(block)) return false;
  }
  return true;
}

Result<uint16_t> Layers::mask_below(uint64_t block) const {
  auto seen = confirm(below_->look(block));
  if (!seen) return seen.error();
  return seen->mask;
}

Result<uint16_t> Layers::hidden_below(uint64_t block) const {
  // What a merge takes out of a lower layer may come back after a crash.
  if (handing_over_) return image_.geometry.full_mask();
  const auto coming = bases_.coming_chain();
  auto now = confirm(below_->buried_mask(block));
  if (!now || !coming) return now;
  auto later = confirm(coming->buried_mask(block));
  if (!later) return later;
  return static_cast<uint16_t>(*now | *later);
}

Result<void> Layers::read_below(uint64_t block, const Entry& own, uint32_t from, char* to,
                                size_t length) const {
  Gatherer gatherer;
  ChainReader reader(image_.geometry, *below_);
  auto outcome = reader.read({block, from, from + static_cast<uint32_t>(length)}, own, *image_.file,
                             to, &gatherer);
  if (outcome) outcome = gatherer.flush();
  return confirm(std::move(outcome));
}

}  // namespace pcow
