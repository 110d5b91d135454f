// Opening and closing an image.
//
// Order of opening for writing (docs/format.md, "What a writer does, in which order"):
//   1. The lock is taken: from here on no other process changes the image.
//   2. A sync: a writer that was killed may have left the newest superblock only in the page cache.
//      Until it is on the disk, the space that the previous one names is not free, and the slot of
//      the previous one must not be written.
//   3. After a host crash, entries that were not durable are dropped, in every layer. (A frozen
//      layer has such entries if a merge into it was interrupted.)
//   4. The free map is derived. After an unclean end all free space is punched; bytes that were
//      appended to the file are punched in any case.
//   5. The superblock that says "open, by this process, in this boot, with this page cache"
//      (page_cache.h) is written and synced before anything else is changed. The sync makes the
//      holes of step 4 durable as well. Then the inode is marked in memory.
//   6. Layers that were frozen but not sealed are synced and sealed, and unfinished deletions are
//      finished.
// Step 3 needs no order relative to step 5: after a crash in between, the next opener finds another
// boot id, or entries that are already dropped.

#include <algorithm>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"
#include "engine/image/locking.h"
#include "engine/image/page_cache.h"
#include "engine/rules.h"

namespace pcow {
namespace {

// The lock came with the descriptor: taking it again has no effect then, and fails if the
// descriptor does not hold it.
Result<std::shared_ptr<File>> open_given(const std::string& path, const OpenOptions& options) {
  auto file = File::adopt(path, options.given.front().descriptor, options.observer);
  if (!file || !options.write) return file;
  auto locked = (*file)->try_lock();
  if (!locked) return locked.error();
  if (!*locked) return locked_by(**file);
  return file;
}

// Collects neighbouring blocks that are in use.
class Run {
 public:
  explicit Run(Space* space) : space_(space) {}
  void add(uint64_t index) {
    if (index != first_ + count_) {
      end();
      first_ = index;
    }
    count_++;
  }
  void end() {
    if (count_) space_->mark_data(first_, count_);
    count_ = 0;
  }

 private:
  Space* const space_;
  uint64_t first_ = 0;
  uint64_t count_ = 0;
};

// The writer's part of opening: recovery, the free map, the open mark. It needs no locks, because
// no other thread knows the image yet.
class TakeOver {
 public:
  explicit TakeOver(ImageState* state) : state_(*state), geometry_(state->geometry) {}

  Result<void> run() {
    const Superblock& superblock = state_.superblocks.current();
    if (superblock.read_only_compatible & ~kKnownReadOnlyCompatible)
      return Error(
          Code::kUnsupported,
          state_.path +
              " uses features that this program can read, but not write: a newer pcow is needed");
    const bool opened_clean = superblock.clean;
    if (keeps(Rule::kSyncAtOpening)) PCOW_TRY(state_.file->sync());
    auto size = state_.file->size();
    if (!size) return size.error();
    state_.space = std::make_unique<Space>(state_.file, geometry_, *size);
    limit_ = std::min(*size >> geometry_.block_shift(), kMaxBlockIndex + 1);
    PCOW_TRY(derive_free_map());
    PCOW_TRY(punch_free(opened_clean));
    PCOW_TRY(mark_open());
    // Now without the dropped entries.
    if (state_.layers.only_durable()) PCOW_TRY(state_.layers.load(true));
    const LayerDirectory& directory = state_.layers.directory();
    const bool all_sealed =
        std::all_of(directory.layers.begin(), directory.layers.end(), [&](const Layer& layer) {
          return layer.id == directory.active || layer.id <= state_.superblocks.current().sealed;
        });
    if (!all_sealed) PCOW_TRY(state_.structure.seal());
    // There may be no space to finish deletions; the image is sound without.
    if (auto collected = collect(&state_, nullptr); !collected)
      return leave_unfinished(&state_, collected.error());
    return {};
  }

 private:
  // A large image has millions of entries, so many pages are read at once and neighbours are marked
  // together. A small image has a page or two.
  static constexpr uint64_t kMostPages = 256;

  // Steps 3 and 4.
  Result<void> derive_free_map() {
    Space& space = *state_.space;
    const Superblock& superblock = state_.superblocks.current();
    const uint32_t shift = geometry_.block_shift();
    space.mark_range(0, geometry_.superblock_blocks());
    space.mark_range(superblock.directory_offset >> shift,
                     geometry_.blocks_for(superblock.directory_length));
    if (superblock.is_lazy())
      space.mark_range(superblock.source_offset >> shift,
                       geometry_.blocks_for(superblock.source_length));
    Run in_use(&space);
    for (const Layer& layer : state_.layers.directory().layers) {
      space.mark_range(layer.table_offset >> shift, layer.table_length >> shift);
      if (layer.checksums) space.mark_range(layer.checksums, layer.table_length >> shift);
      PCOW_TRY(look_at_layer(layer, &in_use));
    }
    in_use.end();
    if (state_.layers.directory().layers.size() > 1) space.note_frozen();
    return {};
  }

  Result<void> look_at_layer(const Layer& layer, Run* in_use) {
    const uint64_t entries = geometry_.blocks_for(layer.size);
    const bool is_active = layer.id == state_.layers.directory().active;
    // A frozen layer is mapped only if it has something to mend: it was not sealed, or a merge into
    // it was interrupted.
    std::shared_ptr<Table> table = is_active ? state_.layers.active() : nullptr;
    const std::vector<ChunkRange> present =
        is_active ? table->present() : state_.layers.source_in_use(layer.id)->present;
    for (const auto& [first, end] : present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        const uint64_t within = (chunk - first) % kMostPages;
        if (within == 0) {
          const uint64_t count = std::min(end - chunk, kMostPages);
          if (pages_.size() < count) pages_.resize(count);
          PCOW_TRY(read_entry_pages(*state_.file, layer.table_offset, entries, chunk, count,
                                    pages_.data()));
        }
        PCOW_TRY(look_at_page(layer, chunk, pages_[within], &table, in_use));
      }
    }
    return {};
  }

  Result<void> look_at_page(const Layer& layer, uint64_t chunk, const EntryPage& page,
                            std::shared_ptr<Table>* table, Run* in_use) {
    const uint16_t full = geometry_.full_mask();
    const uint64_t whole = Entry{0, full, full}.pack();
    const uint64_t lowest = geometry_.superblock_blocks();
    bool unsynced_here = false;
    for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
      if (page[i] == 0) continue;
      // The usual entry of a large image: all sub-blocks, durable, inside the file.
      if (const uint64_t index = page[i] >> 32;
          (page[i] & 0xffffffffu) == whole && index >= lowest && index < limit_) {
        in_use->add(index);
        continue;
      }
      const uint64_t block = chunk * kBlocksPerChunk + i;
      Entry entry = Entry::unpack(page[i]);
      if (state_.layers.only_durable() && entry_is_sound(page[i], full, state_.layers.is_lazy()) &&
          entry != entry.as_durable()) {
        entry = entry.as_durable();
        PCOW_TRY(prepare_stores(layer, chunk, table));
        (*table)->store(block, entry);
      }
      auto checked = checked_entry(entry.pack() | (page[i] >> 62 << 62), geometry_, *state_.file,
                                   state_.layers.is_lazy(), block);
      if (!checked) return checked.error();
      if (entry.index) in_use->add(entry.index);
      unsynced_here |= entry.written != entry.durable;
    }
    if (unsynced_here) {
      PCOW_TRY(prepare_stores(layer, chunk, table));
      state_.durability.mark(*table, chunk);
    }
    return {};
  }

  Result<void> prepare_stores(const Layer& layer, uint64_t chunk, std::shared_ptr<Table>* table) {
    if (!*table) {
      auto mapped =
          Table::map(state_.file, layer.table_offset, geometry_.blocks_for(layer.size), true);
      if (!mapped) return mapped.error();
      *table = std::move(*mapped);
    }
    return (*table)->ensure(chunk);
  }

  // A reserve must read as zeros. If the last writer had begun to spend it, it is punched with all
  // other free space. A reserve that is not in the superblock yet would not be found again: the new
  // one is made before the superblock is written, because otherwise each unclean end would leave
  // one behind.
  Result<void> punch_free(bool opened_clean) {
    Space& space = *state_.space;
    const Superblock& superblock = state_.superblocks.current();
    if (!opened_clean && keeps(Rule::kPunchAtOpening)) PCOW_TRY(space.punch_free());
    space.adopt_reserve({superblock.reserve, superblock.reserve_blocks});
    if (!opened_clean) (void)space.keep_reserve();
    if (keeps(Rule::kPunchAtOpening)) PCOW_TRY(space.punch_tail());
    return {};
  }

  // Step 5.
  Result<void> mark_open() {
    state_.superblocks.mark_open();
    if (state_.layers.names_dropped()) {
      PreparedStructure prepared;
      prepared.directory = state_.layers.directory();
      PCOW_TRY(state_.structure.prepare_directory(&prepared, Structure::Reach::kFile));
      PCOW_TRY(state_.structure.flip(&prepared));
    } else {
      PCOW_TRY(state_.superblocks.renew());
    }
    if (keeps(Rule::kMarkBeforeWrite)) PCOW_TRY(state_.file->sync());
    mark_inode(*state_.file);
    state_.space->note_sync_began();
    state_.space->note_sync_done();
    return {};
  }

  ImageState& state_;
  const Geometry& geometry_;
  uint64_t limit_ = 0;  // blocks of the file
  std::vector<EntryPage> pages_;
};

Result<void> close_image(ImageState& state) {
  const auto no_checksums = state.checksum_work.end();
  const auto no_fills = state.filling.keep_away();
  const auto holding = state.structure.lock();
  if (state.layers.is_closed()) return {};
  Result<void> outcome;
  if (state.writable()) {
    // What an unfinished merge holds back is not used before the image is opened again and the
    // deletion finished.
    auto told = state.structure.let_go();
    if (!told) state.structure.note_leak();
    const auto shorten = [&] { state.space->shorten(state.layers.active()->entries()); };
    if (!keeps(Rule::kGoneBeforeShorter)) shorten();
    // One sync for what was written, and more until everything that was released is punched
    // durably.
    if (keeps(Rule::kSyncBeforeClean)) do {
        outcome = state.durability.sync();
      } while (outcome && state.space->has_pending() && keeps(Rule::kHolesBeforeClean));
    if (outcome && !state.structure.leaks()) {
      // Neither the superblock on the disk nor the next one names anything behind the new end, so a
      // crash may leave the file with its old length or the new one. A reader in another process
      // may still look there. What it finds missing, its superblock or its entry no longer names:
      // it looks again, as it does for a block that is used for something else.
      shorten();
      Superblock next = state.superblocks.next();
      next.clean = true;
      next.opener = Opener{};
      outcome = state.superblocks.put(next);
      if (outcome) outcome = state.file->sync();
    }
    if (outcome) outcome = std::move(told);
  }
  const std::unique_lock lock(state.gate);
  state.layers.set_closed();
  if (state.writable()) state.file->unlock();
  return outcome;
}

}  // namespace

Result<void> Image::give_bases(const std::vector<GivenFile>& bases) {
  auto files = state_->bases.adopt_given(bases);
  if (!files) return files.error();
  const std::unique_lock lock(state_->gate);
  state_->bases.give(std::move(*files));
  return {};
}

Image::Image(std::unique_ptr<ImageState> state) : state_(std::move(state)) {}

Image::~Image() { (void)close_image(*state_); }

Result<void> Image::close() { return state_->failures.noted(close_image(*state_)); }

Result<std::unique_ptr<Image>> Image::open(const std::string& path, const OpenOptions& options) {
  auto file = !options.given.empty() ? open_given(path, options)
              : options.write        ? open_locked(path, options.observer)
                                     : File::open(path, false, options.observer);
  if (!file) return file.error();
  auto size = (*file)->size();
  if (!size) return size.error();
  if (*size < 2 * kPageSize)
    return Error(Code::kNotAnImage, path + " is not a Pcow image (it is too short)");
  auto superblock = read_superblock(**file);
  if (!superblock) return superblock.error();
  OpenOptions kept = options;
  kept.given.clear();  // these numbers are valid only until this call returns
  const bool bases_are_given = !options.given.empty();
  auto state = std::make_unique<ImageState>(path, std::move(kept), *file, std::move(*superblock),
                                            bases_are_given);
  const auto load = [&]() -> Result<void> {
    if (bases_are_given) {
      auto bases = state->bases.adopt_given({options.given.begin() + 1, options.given.end()});
      if (!bases) return bases.error();
      state->bases.give(std::move(*bases));
    }
    PCOW_TRY(state->layers.load(false));
    return options.write ? TakeOver(state.get()).run() : Result<void>();
  };
  if (auto loaded = load(); !loaded) {
    // Do not write anything: the open failed.
    state->layers.set_closed();
    if (options.write) (*file)->unlock();
    return loaded.error();
  }
  return std::unique_ptr<Image>(new Image(std::move(state)));
}

}  // namespace pcow
