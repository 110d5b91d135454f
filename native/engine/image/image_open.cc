// Opening and closing.
//
// Order of opening for writing (docs/format.md, "What a writer does, in which order"):
//   1. the lock; nobody else changes the image from here on
//   2. a sync: a writer that was killed may have left the newest superblock in the page cache only. Until that is on the
//      disk, what the one before names is not free, and the slot of the one before is not to be written
//   3. after a host crash: entries that were not durable are dropped, in every layer (a frozen one has such where a merge
//      into it was interrupted)
//   4. the free map is derived; after an unclean end, everything free is punched out, and in any case what somebody has
//      appended to the file
//   5. the superblock says "open, by us, in this boot, with this page cache" (page_cache.h), and is synced, before anything
//      else is changed; then the inode is marked in memory. The sync makes
//      the holes of step 4 durable as well
//   6. layers that were frozen but not sealed are synced and sealed; deletions that were begun are finished
// Step 3 needs no order against step 5: a crash in between finds another boot id, or entries that are already dropped.

#include <algorithm>
#include <shared_mutex>

#include "engine/image/deletions.h"
#include "engine/image/image_state.h"
#include "engine/image/locking.h"
#include "engine/image/page_cache.h"
#include "engine/rules.h"

namespace pcow {
namespace {

// The lock came along with the descriptor; taking it once more is a no-op then, and fails where it did not.
Result<std::shared_ptr<File>> open_given(const std::string& path, const OpenOptions& options) {
  auto file = File::adopt(path, options.given.front().descriptor, options.observer);
  if (!file || !options.write) return file;
  auto locked = (*file)->try_lock();
  if (!locked) return locked.error();
  if (!*locked) return locked_by(**file);
  return file;
}

// Neighbouring blocks in use, gathered.
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

// The writer's part of opening: recovery, the free map, the mark of being open. Nobody else knows the image yet: no locks.
class TakeOver {
 public:
  explicit TakeOver(ImageState* state) : state_(*state), geometry_(state->geometry) {}

  Result<void> run() {
    const Superblock& superblock = state_.superblocks.current();
    if (superblock.read_only_compatible & ~kKnownReadOnlyCompatible)
      return Error(Code::kUnsupported,
                   state_.path + " uses features that this program can read, but not write: a newer pcow is needed");
    const bool opened_clean = superblock.clean;
    if (keeps(Rule::kSyncAtOpening)) PCOW_TRY(state_.file->sync());
    auto size = state_.file->size();
    if (!size) return size.error();
    state_.space = std::make_unique<Space>(state_.file, geometry_, *size);
    limit_ = std::min(*size >> geometry_.block_shift(), kMaxBlockIndex + 1);
    PCOW_TRY(derive_free_map());
    PCOW_TRY(punch_free(opened_clean));
    PCOW_TRY(mark_open());
    if (state_.layers.only_durable()) PCOW_TRY(state_.layers.load(true));  // the entries are mended now
    const LayerDirectory& directory = state_.layers.directory();
    const bool all_sealed = std::all_of(directory.layers.begin(), directory.layers.end(), [&](const Layer& layer) {
      return layer.id == directory.active || layer.id <= state_.superblocks.current().sealed;
    });
    if (!all_sealed) PCOW_TRY(state_.structure.seal());
    // Room for finishing deletions may be missing now: the image is sound without.
    if (auto collected = collect(&state_, nullptr); !collected) return leave_unfinished(&state_, collected.error());
    return {};
  }

 private:
  // A large image has millions of entries: many pages are read at once, and neighbours are marked together. A small one has a page or two.
  static constexpr uint64_t kMostPages = 256;

  // Steps 3 and 4.
  Result<void> derive_free_map() {
    Space& space = *state_.space;
    const Superblock& superblock = state_.superblocks.current();
    const uint32_t shift = geometry_.block_shift();
    space.mark_range(0, geometry_.superblock_blocks());
    space.mark_range(superblock.directory_offset >> shift, geometry_.blocks_for(superblock.directory_length));
    Run in_use(&space);
    for (const Layer& layer : state_.layers.directory().layers) {
      space.mark_range(layer.table_offset >> shift, layer.table_length >> shift);
      if (layer.checksums) space.mark_range(layer.checksums, layer.table_length >> shift);
      PCOW_TRY(look_at_layer(layer, &in_use));
    }
    in_use.end();
    return {};
  }

  Result<void> look_at_layer(const Layer& layer, Run* in_use) {
    const uint64_t entries = geometry_.blocks_for(layer.size);
    const bool is_active = layer.id == state_.layers.directory().active;
    // Of a frozen layer only mapped where there is something to mend: it was not sealed, or a merge into it was interrupted.
    std::shared_ptr<Table> table = is_active ? state_.layers.active() : nullptr;
    const std::vector<ChunkRange> present =
        is_active ? table->present() : state_.layers.source_in_use(layer.id)->present;
    for (const auto& [first, end] : present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        const uint64_t within = (chunk - first) % kMostPages;
        if (within == 0) {
          const uint64_t count = std::min(end - chunk, kMostPages);
          if (pages_.size() < count) pages_.resize(count);
          PCOW_TRY(read_entry_pages(*state_.file, layer.table_offset, entries, chunk, count, pages_.data()));
        }
        PCOW_TRY(look_at_page(layer, chunk, pages_[within], &table, in_use));
      }
    }
    return {};
  }

  Result<void> look_at_page(const Layer& layer, uint64_t chunk, const EntryPage& page, std::shared_ptr<Table>* table,
                            Run* in_use) {
    const uint16_t full = geometry_.full_mask();
    const uint64_t whole = Entry{0, full, full}.pack();
    const uint64_t lowest = geometry_.superblock_blocks();
    bool unsynced_here = false;
    for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
      if (page[i] == 0) continue;
      // Nearly all entries of a large image: whole, durable, inside the file.
      if (const uint64_t index = page[i] >> 32; (page[i] & 0xffffffffu) == whole && index >= lowest && index < limit_) {
        in_use->add(index);
        continue;
      }
      const uint64_t block = chunk * kBlocksPerChunk + i;
      Entry entry = Entry::unpack(page[i]);
      if (state_.layers.only_durable() && entry_is_sound(page[i], full) && entry != entry.as_durable()) {
        entry = entry.as_durable();
        PCOW_TRY(prepare_stores(layer, chunk, table));
        (*table)->store(block, entry);
      }
      auto checked = checked_entry(entry.pack() | (page[i] >> 62 << 62), geometry_, *state_.file, block);
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
      auto mapped = Table::map(state_.file, layer.table_offset, geometry_.blocks_for(layer.size), true);
      if (!mapped) return mapped.error();
      *table = std::move(*mapped);
    }
    return (*table)->ensure(chunk);
  }

  // A reserve reads as zeros: one that the last writer had begun to spend is punched out with all that is free. One that is not in the
  // superblock yet is not found again: another, that will be, or each end of that kind would leave one behind.
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
  const auto holding = state.structure.lock();
  if (state.layers.is_closed()) return {};
  Result<void> outcome;
  if (state.writable()) {
    // What an interrupted merge holds back is not used again before the image is opened anew, and the deletion finished.
    auto told = state.structure.let_go();
    if (!told) state.structure.note_leak();
    // Once for what was written, and until everything released is punched out, durably.
    if (keeps(Rule::kSyncBeforeClean)) do {
        outcome = state.durability.sync();
      } while (outcome && state.space->has_pending() && keeps(Rule::kHolesBeforeClean));
    if (outcome && !state.structure.leaks()) {
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
  if (*size < 2 * kPageSize) return Error(Code::kNotAnImage, path + " is not a Pcow image (it is too short)");
  auto superblock = read_superblock(**file);
  if (!superblock) return superblock.error();
  OpenOptions kept = options;
  kept.given.clear();  // numbers that mean something only until we return
  const bool bases_are_given = !options.given.empty();
  auto state = std::make_unique<ImageState>(path, std::move(kept), *file, std::move(*superblock), bases_are_given);
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
    // Without a word to the disk: what could not be opened is not closed either.
    state->layers.set_closed();
    if (options.write) (*file)->unlock();
    return loaded.error();
  }
  return std::unique_ptr<Image>(new Image(std::move(state)));
}

}  // namespace pcow
