#include "engine/image/chain.h"

#include <algorithm>

namespace pcow {
namespace {

// About 80 MiB with one piece for each block: enough for 320 GiB of hot image at the default block
// size.
constexpr size_t kRememberedChunks = 10240;

}  // namespace

Result<Entry> checked_entry(uint64_t word, const Geometry& geometry, const File& file, bool lazy,
                            uint64_t block) {
  const Entry entry = Entry::unpack(word);
  const bool placed =
      entry.index == 0 || (entry.index >= geometry.superblock_blocks() &&
                           file.covers((uint64_t{entry.index} + 1) << geometry.block_shift()));
  if (placed && entry_is_sound(word, geometry.full_mask(), lazy)) return entry;
  return Error(Code::kCorrupt, file.path() + ": the table entry of block " + std::to_string(block) +
                                   " is damaged, or the file was cut short");
}

Error remote_error(const File& file, const Uuid& image, uint64_t layer, uint64_t block) {
  Error error(Code::kRemote, file.path() + ": block " + std::to_string(block) + " of layer " +
                                 std::to_string(layer) +
                                 " has not been fetched yet; pcow prefetch fetches everything");
  error.remote =
      std::make_shared<RemoteBlock>(RemoteBlock{file.path(), format_uuid(image), layer, block});
  return error;
}

std::shared_ptr<const Source> make_source(std::shared_ptr<File> file, const Superblock& superblock,
                                          const Layer& layer, bool only_durable,
                                          std::vector<ChunkRange> present) {
  const Geometry geometry(superblock.block_shift);
  auto source = std::make_shared<Source>();
  if (layer.checksums) source->checksums = std::make_shared<Checksums>(file, geometry, layer);
  source->file = std::move(file);
  source->table_offset = layer.table_offset;
  source->entries = geometry.blocks_for(layer.size);
  source->only_durable = only_durable;
  source->lazy = superblock.is_lazy();
  if (source->lazy) source->uses = Uses::of(superblock.uuid, layer.id, source->entries);
  source->layer = layer.id;
  source->image = superblock.uuid;
  source->present = std::move(present);
  return source;
}

Chain::Chain(const Geometry& geometry, Sources sources, std::shared_ptr<const Chain> continued)
    : geometry_(geometry), sources_(std::move(sources)) {
  if (!continued || continued->sources_.size() > sources_.size()) return;
  if (!std::equal(continued->sources_.rbegin(), continued->sources_.rend(), sources_.rbegin()))
    return;
  continued_ = std::move(continued);
  // Without this, each chain would keep alive all chains before it.
  const std::lock_guard lock(continued_->mutex_);
  continued_->continued_ = nullptr;
}

bool Chain::may_hold(uint64_t chunk) const {
  return std::any_of(sources_.begin(), sources_.end(),
                     [&](const auto& source) { return contains(source->present, chunk); });
}

Look<std::shared_ptr<const ResolvedChunk>> Chain::resolve(uint64_t chunk) const {
  {
    const std::lock_guard lock(mutex_);
    const auto found = cache_.find(chunk);
    if (found != cache_.end()) {
      ages_.splice(ages_.begin(), ages_, found->second.age);
      return found->second.resolved;
    }
  }
  auto built = build(chunk);
  if (!built) return built.error();
  const std::lock_guard lock(mutex_);
  if (cache_.contains(chunk)) return *built;
  if (cache_.size() >= kRememberedChunks) {
    cache_.erase(ages_.back());
    ages_.pop_back();
  }
  ages_.push_front(chunk);
  cache_.emplace(chunk, Remembered{*built, ages_.begin()});
  return *built;
}

// Takes the remembered chunk out of the cache; null if there is none.
std::shared_ptr<const ResolvedChunk> Chain::take(uint64_t chunk) const {
  const std::lock_guard lock(mutex_);
  auto found = cache_.extract(chunk);
  if (found.empty()) return nullptr;
  ages_.erase(found.mapped().age);
  return std::move(found.mapped().resolved);
}

Result<std::shared_ptr<const ResolvedChunk>> Chain::build(uint64_t chunk) const {
  std::shared_ptr<const Chain> continued;
  {
    const std::lock_guard lock(mutex_);
    continued = continued_;
  }
  const auto farther = continued ? continued->take(chunk) : nullptr;
  // The number of layers whose tables must be read.
  const size_t nearer = farther ? sources_.size() - continued->sources_.size() : sources_.size();
  std::array<uint16_t, kBlocksPerChunk> settled{};  // sub-blocks that a nearer layer holds
  std::array<std::vector<Piece>, kBlocksPerChunk> found;
  auto resolved = std::make_shared<ResolvedChunk>();
  EntryPage page;
  for (size_t number = 0; number < nearer; number++) {
    const Source& source = *sources_[number];
    if (!contains(source.present, chunk)) continue;
    PCOW_TRY(read_entry_page(*source.file, source.table_offset, source.entries, chunk, &page));
    for (size_t i = 0; i < kBlocksPerChunk; i++) {
      if (page[i] == 0) continue;
      const uint64_t word =
          source.only_durable ? Entry::unpack(page[i]).as_durable().pack() : page[i];
      auto checked =
          checked_entry(word, geometry_, *source.file, source.lazy, chunk * kBlocksPerChunk + i);
      if (!checked) return checked.error();
      const Entry entry = *checked;
      const auto fresh = static_cast<uint16_t>(entry.written & ~settled[i]);
      settled[i] |= entry.written;
      if (entry.has_data()) resolved->buried[i] |= entry.written;
      if (fresh && entry.has_data()) found[i].push_back({entry.index, number, fresh});
    }
  }
  for (size_t i = 0; i < kBlocksPerChunk; i++) {
    if (farther) {
      resolved->buried[i] |= farther->buried[i];
      for (size_t p = farther->start[i]; p < farther->start[i + 1]; p++) {
        const Piece& piece = farther->pieces[p];
        const auto fresh = static_cast<uint16_t>(piece.mask & ~settled[i]);
        if (fresh) found[i].push_back({piece.index, piece.source + nearer, fresh});
      }
    }
    resolved->pieces.insert(resolved->pieces.end(), found[i].begin(), found[i].end());
    resolved->start[i + 1] = static_cast<uint16_t>(resolved->pieces.size());
  }
  resolved->pieces.shrink_to_fit();
  return std::shared_ptr<const ResolvedChunk>(std::move(resolved));
}

Look<Chain::BlockBelow> Chain::look(uint64_t block) const {
  const uint64_t chunk = block / kBlocksPerChunk;
  BlockBelow seen;
  if (!may_hold(chunk)) return seen;
  auto resolved = resolve(chunk).unconfirmed();
  if (!resolved) return resolved.error();
  const size_t i = block % kBlocksPerChunk;
  for (size_t p = (*resolved)->start[i]; p < (*resolved)->start[i + 1]; p++) {
    const Piece& piece = (*resolved)->pieces[p];
    seen.mask |= piece.mask;
    seen.nearest = std::min<size_t>(seen.nearest, piece.source);
  }
  return seen;
}

Look<uint16_t> Chain::buried_mask(uint64_t block) const {
  const uint64_t chunk = block / kBlocksPerChunk;
  if (!may_hold(chunk)) return uint16_t{0};
  auto resolved = resolve(chunk).unconfirmed();
  if (!resolved) return resolved.error();
  return (*resolved)->buried[block % kBlocksPerChunk];
}

Look<Entry> Chain::look_again(uint64_t block, const Piece& piece) const {
  const Source& source = *sources_[piece.source];
  uint64_t word = 0;
  PCOW_TRY(source.file->read_all(source.table_offset + block * 8, &word, sizeof word));
  auto entry = checked_entry(word, geometry_, *source.file, source.lazy, block);
  if (entry && !entry->remote) (void)take(block / kBlocksPerChunk);
  return entry ? Look<Entry>(*entry) : Look<Entry>(entry.error());
}

}  // namespace pcow
