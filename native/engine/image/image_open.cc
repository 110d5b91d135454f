// Opening, recovery, closing.
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

#include "engine/image/base.h"
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

bool has_changed(const Watch& watch) { return watch.generation->now() != watch.seen; }

bool any_has_changed(const std::vector<Watch>& watches) {
  return std::any_of(watches.begin(), watches.end(), has_changed);
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

}  // namespace

bool ImageState::is_stale() const {
  return is_own_stale() || any_has_changed(base_watches) || (coming && any_has_changed(coming->bases.watches));
}

// As a reader, a table that was torn is mapped anew.
bool ImageState::is_own_stale() const { return own_watch && (has_changed(*own_watch) || active->is_torn()); }

// Nothing that is in use is touched before all that can fail is done: a reader lives on with what it had.
Result<void> ImageState::load() {
  std::shared_ptr<GenerationWatch> watch;
  if (!writable()) {
    auto started = GenerationWatch::start(*file);
    if (!started) return started.error();
    watch = std::move(*started);
  }
  auto loaded = load_structure(*file, watch.get());
  if (!loaded) return loaded.error();
  // Once this writer has recovered, all counts, also where the host does not tell its boot id.
  if (marked) loaded->crashed = loaded->names_dropped = false;
  if (loaded->superblock.block_shift != geometry.block_shift())
    return Error(Code::kCorrupt, path + ": its block size has changed");

  Chain::Sources fresh;
  for (const Layer& layer : loaded->directory.layers) {
    if (layer.id == loaded->directory.active) {
      fresh.push_back(nullptr);
      continue;
    }
    auto present = present_chunks(*file, layer.table_offset, geometry.blocks_for(layer.size));
    if (!present) return present.error();
    fresh.push_back(make_source(file, geometry, layer, loaded->crashed, std::move(*present)));
  }
  const Layer& layer = loaded->directory.active_layer();
  auto table = Table::map(file, layer.table_offset, geometry.blocks_for(layer.size), writable());
  if (!table) return table.error();
  Result<BaseChain> bases = BaseChain{};
  if (!options.without_bases) bases = open_chain(loaded->superblock.base, held_files());
  if (!bases) return bases.error();

  superblock = loaded->superblock;
  directory = std::move(loaded->directory);
  crashed = loaded->crashed;
  names_dropped = loaded->names_dropped;
  if (watch) own_watch = Watch{watch, loaded->seen};
  active = std::move(*table);
  sources = std::move(fresh);
  adopt_bases(std::move(*bases));
  epoch++;
  below = chain_from(directory.active_layer().parent);
  return {};
}

// What a chain is opened anew with: the files that we have need no path, and no descriptor more.
BaseFiles ImageState::held_files() const {
  BaseFiles held = base_files;
  held.insert(held.end(), given_bases.begin(), given_bases.end());
  return held;
}

Result<void> ImageState::bring_up_to_date() {
  {
    const std::shared_lock lock(gate);
    if (!is_stale()) return {};
  }
  return refresh();
}

Result<void> ImageState::refresh() {
  const std::unique_lock lock(gate);
  if (closed) return closed_error();
  if (!is_stale()) return {};
  if (!writable()) {
    PCOW_TRY(load());
    content_generation++;
    return {};
  }
  auto bases = open_chain(superblock.base, held_files());
  if (!bases) return bases.error();
  if (coming) {
    auto next = open_chain(coming->reference, coming->bases.files);
    if (!next) return next.error();
    coming->bases = std::move(*next);
    coming->chain = std::make_shared<Chain>(geometry, coming->bases.sources);
  }
  content_generation++;
  adopt_bases(std::move(*bases));
  epoch++;
  below = chain_from(directory.active_layer().parent);
  return {};
}

// Nobody else knows the image yet: no locks.
Result<void> ImageState::take_over() {
  if (superblock.read_only_compatible & ~kKnownReadOnlyCompatible)
    return Error(Code::kUnsupported,
                 path + " uses features that this program can read, but not write: a newer pcow is needed");
  opened_clean = superblock.clean;
  if (keeps(Rule::kSyncAtOpening)) PCOW_TRY(file->sync());
  auto size = file->size();
  if (!size) return size.error();
  space = std::make_unique<Space>(file, geometry, *size);
  space->mark_range(0, geometry.superblock_blocks());
  space->mark_range(superblock.directory_offset >> geometry.block_shift(),
                    geometry.blocks_for(superblock.directory_length));

  // A large image has millions of entries: many pages are read at once, and neighbours are marked together. A small one has a page or two.
  constexpr uint64_t kMostPages = 256;
  std::vector<EntryPage> pages;
  const uint64_t whole = Entry{0, geometry.full_mask(), geometry.full_mask()}.pack();
  const uint64_t lowest = geometry.superblock_blocks();
  const uint64_t limit = std::min(*size >> geometry.block_shift(), kMaxBlockIndex + 1);
  Run run(space.get());
  for (size_t number = 0; number < directory.layers.size(); number++) {
    const Layer& layer = directory.layers[number];
    space->mark_range(layer.table_offset >> geometry.block_shift(), layer.table_length >> geometry.block_shift());
    if (layer.checksums) space->mark_range(layer.checksums, layer.table_length >> geometry.block_shift());
    const bool is_active = layer.id == directory.active;
    const uint64_t entries = geometry.blocks_for(layer.size);
    // Of a frozen layer only mapped where there is something to mend: it was not sealed, or a merge into it was interrupted.
    std::shared_ptr<Table> table = is_active ? active : nullptr;
    const auto prepare_stores = [&](uint64_t chunk) -> Result<void> {
      if (!table) {
        auto mapped = Table::map(file, layer.table_offset, entries, true);
        if (!mapped) return mapped.error();
        table = std::move(*mapped);
      }
      return table->ensure(chunk);
    };
    for (const auto& [first, end] : is_active ? active->present() : sources[number]->present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        const uint64_t within = (chunk - first) % kMostPages;
        if (within == 0) {
          const uint64_t count = std::min(end - chunk, kMostPages);
          if (pages.size() < count) pages.resize(count);
          PCOW_TRY(read_entry_pages(*file, layer.table_offset, entries, chunk, count, pages.data()));
        }
        const EntryPage& page = pages[within];
        bool unsynced_here = false;
        for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
          if (page[i] == 0) continue;
          // Nearly all entries of a large image: whole, durable, inside the file.
          if (const uint64_t index = page[i] >> 32;
              (page[i] & 0xffffffffu) == whole && index >= lowest && index < limit) {
            run.add(index);
            continue;
          }
          const uint64_t block = chunk * kBlocksPerChunk + i;
          Entry entry = Entry::unpack(page[i]);
          if (crashed && entry_is_sound(page[i], geometry.full_mask()) && entry != entry.as_durable()) {
            entry = entry.as_durable();
            PCOW_TRY(prepare_stores(chunk));
            table->store(block, entry);
          }
          auto checked = checked_entry(entry.pack() | (page[i] >> 62 << 62), geometry, *file, block);
          if (!checked) return checked.error();
          if (entry.index) run.add(entry.index);
          unsynced_here |= entry.written != entry.durable;
        }
        if (unsynced_here) {
          PCOW_TRY(prepare_stores(chunk));
          mark_unsynced(table, chunk);
        }
      }
    }
  }
  run.end();
  // A reserve reads as zeros: one that the last writer had begun to spend is punched out with all that is free. One that is not in the
  // superblock yet is not found again: another, that will be, or each end of that kind would leave one behind.
  if (!opened_clean && keeps(Rule::kPunchAtOpening)) PCOW_TRY(space->punch_free());
  space->adopt_reserve({superblock.reserve, superblock.reserve_blocks});
  if (!opened_clean) (void)space->keep_reserve();
  if (keeps(Rule::kPunchAtOpening)) PCOW_TRY(space->punch_tail());

  superblock.clean = false;
  superblock.boot = boot_id();
  superblock.cache = cache_token_of(*file);
  superblock.opener = Opener::self();
  if (names_dropped) {
    Prepared prepared;
    prepared.directory = directory;
    PCOW_TRY(prepare_directory(&prepared, Reach::kFile));
    PCOW_TRY(commit(&prepared));
  } else {
    const Superblock next = next_superblock();
    PCOW_TRY(put_superblock(next));
    superblock = next;
  }
  if (keeps(Rule::kMarkBeforeWrite)) PCOW_TRY(file->sync());
  mark_inode(*file);
  marked = true;
  space->note_sync_began();
  space->note_sync_done();

  if (crashed) {
    // The entries are mended now: chains may read them as they stand.
    crashed = false;
    PCOW_TRY(load());
  }
  const bool all_sealed = std::all_of(directory.layers.begin(), directory.layers.end(), [&](const Layer& layer) {
    return layer.id == directory.active || layer.id <= superblock.sealed;
  });
  if (!all_sealed) PCOW_TRY(seal(space->file_end()));
  // Room for finishing deletions may be missing now: the image is sound without.
  if (auto collected = collect(nullptr); !collected) return leave_unfinished(collected.error());
  return {};
}

Result<void> ImageState::close() {
  closing = true;
  const std::lock_guard no_checksums(checksumming);
  const std::lock_guard holding(structure);
  if (closed) return {};
  Result<void> outcome;
  if (writable()) {
    // What an interrupted merge holds back is not used again before the image is opened anew, and the deletion finished.
    auto told = let_go();
    if (!told) leaks = true;
    // Once for what was written, and until everything released is punched out, durably.
    if (keeps(Rule::kSyncBeforeClean)) do {
        outcome = sync();
      } while (outcome && space->has_pending() && keeps(Rule::kHolesBeforeClean));
    if (outcome && !leaks) {
      Superblock next = next_superblock();
      next.clean = true;
      next.opener = Opener{};
      outcome = put_superblock(next);
      if (outcome) outcome = file->sync();
    }
    if (outcome) outcome = std::move(told);
  }
  const std::unique_lock lock(gate);
  closed = true;
  if (writable()) file->unlock();
  return outcome;
}

Result<void> ImageState::take_bases(const std::vector<GivenFile>& bases) {
  BaseFiles taken;
  for (const GivenFile& given : bases) {
    auto adopted = File::adopt(given.path, given.descriptor, options.observer);
    if (!adopted) return adopted.error();
    taken.push_back(std::move(*adopted));
  }
  const std::unique_lock lock(gate);
  given_bases = std::move(taken);
  return {};
}

Result<void> Image::give_bases(const std::vector<GivenFile>& bases) { return state_->take_bases(bases); }

Image::Image(std::unique_ptr<ImageState> state) : state_(std::move(state)) {}

Image::~Image() { (void)state_->close(); }

Result<void> Image::close() { return state_->noted(state_->close()); }

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
  auto state = std::make_unique<ImageState>(path, std::move(kept), *file, *superblock);
  state->bases_are_given = !options.given.empty();
  Result<void> loaded;
  if (state->bases_are_given) loaded = state->take_bases({options.given.begin() + 1, options.given.end()});
  if (loaded) loaded = state->load();
  if (loaded && options.write) loaded = state->take_over();
  if (!loaded) {
    // Without a word to the disk: what could not be opened is not closed either.
    state->closed = true;
    if (options.write) (*file)->unlock();
    return loaded.error();
  }
  return std::unique_ptr<Image>(new Image(std::move(state)));
}

}  // namespace pcow
