// The state behind Image, and its parts that several files of the engine work on. Nothing outside the engine includes
// this.
//
// Locks, in the order in which they are taken:
//   checksumming  one making of checksums at a time; close() waits for it
//   structure   one change of structure at a time (snapshot, rollback, rename, remove, resize, set_base, close)
//   syncing     one sync at a time; also whoever drops a table, since a sync stores into tables
//   gate        shared: reads, writes, discards. Exclusive: the moment in which the active layer is exchanged, and, as a
//               barrier, before released blocks are punched (nobody may still be reading them)
//   chunk       read-modify-write of the entries of a chunk, in whichever table (striped)
//   leaf locks  Space's, Table's, Chain's, `noting`, `marking`: never held while another is taken
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>

#include "engine/format/directory.h"
#include "engine/format/table.h"
#include "engine/image/clock.h"
#include "engine/image/gate.h"
#include "engine/image/image.h"
#include "engine/image/space.h"
#include "engine/image/view.h"

namespace pcow {

struct FaultScene;

// A frozen layer in a reader's hands. The chain is built anew when the image's structure has changed since.
class View {
 public:
  View(uint64_t layer, uint64_t size, bool by_name) : layer_(layer), size_(size), by_name_(by_name) {}
  uint64_t layer() const { return layer_; }
  uint64_t size() const { return size_; }
  bool by_name() const { return by_name_; }  // whoever asked for a name does not read it once it is deleted

 private:
  friend class ImageState;
  const uint64_t layer_;
  const uint64_t size_;
  const bool by_name_;
  mutable std::mutex mutex_;  // guards the two below
  mutable std::shared_ptr<const Chain> chain_;
  mutable uint64_t epoch_ = 0;
};

// Chunks of tables in which entries have become `written` without being `durable`. Whoever marks a chunk has stored
// the entry before, and its data before that: a sync that takes the mark covers both.
using Unsynced = std::map<std::shared_ptr<Table>, std::set<uint64_t>>;

using BaseFiles = std::vector<std::shared_ptr<File>>;

// A file that another process may write, and the generation at which we looked at it.
struct Watch {
  std::shared_ptr<GenerationWatch> generation;
  uint64_t seen;
};

// The chain of bases below an image.
struct BaseChain {
  BaseFiles files;              // nearest first
  Chain::Sources sources;       // nearest layer first
  std::vector<LayerRef> names;  // the same for people
  std::vector<Watch> watches;   // one for each file
  std::string resolved;         // where the first file is
  uint64_t size = 0;            // bytes of the nearest layer
};

// The base that is to be, while an image takes in how the one that it has differs.
struct Coming {
  std::optional<BaseReference> reference;
  BaseChain bases;
  std::shared_ptr<const Chain> chain;
};

class ImageState {
 public:
  ImageState(std::string path, OpenOptions options, std::shared_ptr<File> file, const Superblock& superblock)
      : path(std::move(path)),
        options(std::move(options)),
        file(std::move(file)),
        geometry(superblock.block_shift),
        superblock(superblock) {}

  // image_open.cc
  Result<void> load();       // directory, bases, active layer: all of it anew, or nothing is changed
  Result<void> take_over();  // the writer's part of opening: recovery, free map, the mark of being open
  Result<void> open_bases();
  // `held`: files that may be used in place of what the paths lead to.
  Result<BaseChain> open_chain(std::optional<BaseReference> reference, const BaseFiles& held) const;
  void adopt_bases(BaseChain bases);  // with the gate held exclusively
  // Loads again what another process changed. Where that fails all stays as it was, and stale: reads fail until it succeeds.
  Result<void> refresh();
  Result<void> bring_up_to_date();  // refresh(), where that is needed
  Result<void> take_bases(const std::vector<GivenFile>& bases);
  BaseFiles held_files() const;
  bool is_stale() const;      // somebody else has changed the structure of a file of the chain
  bool is_own_stale() const;  // … of this file
  Result<void> close();

  // image_io.cc; the caller holds the gate shared
  Result<size_t> read_locked(const View* view, uint64_t offset, void* buffer, size_t length);
  Result<size_t> read_once(const View* view, uint64_t offset, void* buffer, size_t length, bool* moved);
  Result<void> write_locked(uint64_t offset, const void* buffer, size_t length);
  Result<void> discard_locked(uint64_t offset, uint64_t length);
  Result<void> fill(uint64_t block, uint64_t place, const Entry& before, bool own, uint32_t at, uint32_t end,
                    const char* bytes);

  // Looks at what lies below the active layer, for whoever decides by them what to store. What they return is true for ever:
  // a frozen layer never changes what it reads as, and the tables and blocks that were looked at still counted after the look.
  // A base's writer lets blocks go only after the superblock that no longer names them, and uses them again two syncs later.
  // So it is no matter if that superblock comes between the look and the store. kBaseChanged: it came too early; look again.
  Result<uint16_t> mask_below(uint64_t block) const;  // as Chain::look()
  Result<uint16_t> hidden_below(
      uint64_t block) const;  // what zeros must hide: also what a rebase under way brings below
  // Bytes of the block, as read through `own`, an entry of the active layer.
  Result<void> read_below(uint64_t block, const Entry& own, uint32_t from, char* to, size_t length) const;
  template <typename T>
  Result<T> confirm(Look<T> look) const {
    return confirm(std::move(look.seen_));
  }
  template <typename T>
  Result<T> confirm(Result<T> look) const {
    // A look that failed, too: what it stumbled over may have been something else by then.
    return is_stale() ? Result<T>(stale_error()) : look;
  }

  // own_block.h, which says in which order; the caller holds the chunk's lock
  enum class Purpose { kData, kGivingBack };
  struct Gained {
    uint16_t written;
    uint16_t durable = 0;  // only in a table that no superblock names yet: what does comes after a sync
  };
  template <typename Fill>
  Result<Entry> make_own(const std::shared_ptr<Table>& table, uint64_t block, const Entry& before, const Gained& gained,
                         Purpose purpose, const Fill& fill);
  template <typename Read>
  Result<void> copy_sub_blocks(uint64_t place, uint16_t mask, const Read& read);
  void make_zero(Table* table, uint64_t block, const Entry& before, uint16_t gained);  // `before` names no block
  Result<uint64_t> make_own_run(uint64_t block, uint64_t most);
  Result<void> make_mappable(uint64_t place, uint64_t length) const;  // bytes of the file: they get disk space
  Result<uint32_t> allocate_block(const Table& table, uint64_t block);
  Result<uint32_t> take_block(const Table& table, uint64_t block, const Entry& before, Purpose purpose);
  Result<void> fill_cache(uint64_t index, uint64_t count);

  // Does what gives space back, and does it again where the disk is full and `may_repeat` says so. Without the gate.
  template <typename Do, typename MayRepeat>
  auto giving_back(const Do& what, const MayRepeat& may_repeat) {
    const auto is_over = [&](const auto& outcome) { return outcome || !is_full(outcome.error()) || !may_repeat(); };
    auto outcome = what();
    if (is_over(outcome)) return outcome;
    // What was released before may only be waiting for a sync; two of them give its space back.
    if (space->has_pending() && sync() && sync()) outcome = what();
    if (is_over(outcome) || !space->spend_reserve()) return outcome;
    outcome = what();
    space->end_spending();
    return outcome;
  }
  // A change of structure: with `structure` held. One that has happened is not done again, whatever failed afterwards.
  template <typename Do>
  auto giving_back_by_change(const Do& what) {
    return giving_back(what,
                       [&, before = superblock.directory_offset] { return superblock.directory_offset == before; });
  }
  // Whether the disk has too little space, so that giving some back helps. A sync that failed never counts, whatever errno the disk
  // has given for it: what was to be synced is lost, and no space brings it back.
  bool is_full(const Error& why) const {
    return (why.code == Code::kNoSpace || why.code == Code::kTooLarge) && !file->sync_failure();
  }
  // An operation has done its own work; `why` keeps an earlier deletion from being finished. That is noted, and is no failure of the
  // operation, but for a failed sync: whoever waits for this operation would take what it has synced for durable.
  Result<void> leave_unfinished(const Error& why) {
    if (auto failed = file->sync_failure()) return *failed;
    note(why);
    return {};
  }
  std::mutex& chunk_lock(uint64_t block) { return chunk_locks[block / kBlocksPerChunk % chunk_locks.size()]; }

  // image_sync.cc
  Result<void> sync();
  Result<void> sync_frozen(uint64_t end);  // bytes of the file
  Result<void> write_back(uint64_t end);   // the same; only to make the next sync shorter
  bool needs_kernel() const;
  template <typename WriteBack>
  Result<void> make_durable(const Unsynced& marked, const WriteBack& write_back);
  void mark_unsynced(const std::shared_ptr<Table>& table, uint64_t chunk);
  void forget_unsynced(const Table& table);  // with `syncing` held

  // image_fault.cc; the caller holds the gate shared
  Result<Extent> make_writable_locked(uint64_t offset, const FaultHint& hint, FaultWork* work);
  Result<Entry> complete_block(uint64_t block, const Entry& before, FaultWork* work);
  Result<void> copy_below(uint64_t block, uint64_t place, uint16_t mask);
  struct Made {
    uint64_t from;  // bytes, in the image
    uint64_t to;
  };
  Result<Made> copy_sub_block(uint64_t block, const FaultScene& scene, FaultWork* work);
  Result<Made> complete(uint64_t block, const FaultScene& scene, uint64_t ahead, FaultWork* work);
  Result<Made> expand(uint64_t block, uint64_t ahead, FaultWork* work);
  Extent held_extent(uint64_t offset) const;
  Result<Extent> mappable_extent(uint64_t offset) const;  // … with disk space behind it

  // image_layers.cc; the caller holds `structure`
  struct Prepared {
    Directory directory;
    uint64_t offset = 0;  // of the encoded directory in the file, bytes
    uint64_t length = 0;
    std::shared_ptr<Table> table;  // of a new active layer, or null
    // A frozen layer that has inherited chunks by a merge, and itself as a link of chains; 0: none.
    uint64_t heir = 0;
    std::shared_ptr<const Source> heir_source;
    std::optional<uint64_t> sealed;  // the superblock says so from then on
    // The image stands on another base from then on.
    bool rebased = false;
    std::optional<BaseReference> base;
    BaseChain bases;
  };
  enum class Reach { kFile, kDirectory };
  // Writes it elsewhere, and makes it durable: it alone, or with all else that has been written.
  Result<void> prepare_directory(Prepared* prepared, Reach reach);
  Result<void> prepare_active(Prepared* prepared, uint64_t parent, uint64_t size);
  void abandon(const Prepared& prepared);
  Superblock next_superblock();  // the one that counts, as it is to be written again
  Result<void> put_superblock(const Superblock& next);
  Result<void> settle();                    // with `structure` held
  Result<void> check_settled() const;       // an error: a crash could make a change count that failed
  Result<void> commit(Prepared* prepared);  // with the gate held exclusively: from here on it counts
  Result<void> seal(uint64_t end);
  Result<void> change_directory(Prepared* prepared);  // prepare, commit, make durable
  // image_merge.cc: drops and merges hidden layers. An error: not all that could go are gone.
  Result<void> collect(const Progress& progress);
  Result<void> let_go();  // of what Space holds back; readers elsewhere are told first
  Result<void> collect_layer(const Layer& spent, const Progress& progress);
  // The same before another change that must not meet a merge that was begun. `what`: that change, for people.
  Result<void> finish_deletions(const std::string& what);
  Result<void> merge(const Layer& parent, const Layer& child, const Progress& progress);
  Result<void> merge_chunk(const Layer& parent, const std::shared_ptr<Table>& heir, uint64_t chunk, uint64_t* taken);
  Result<void> merge_chunks(const Layer& parent, const Layer& child, const std::shared_ptr<Table>& heir, uint64_t first,
                            uint64_t end, const std::function<bool(uint64_t chunk)>& go_on);
  Result<bool> hand_over(const Layer& parent, const Layer& child, const std::shared_ptr<Table>& heir, uint64_t end);
  Result<void> show_heir(const Layer& child, const Table& heir);
  Result<std::array<uint32_t, kBlocksPerChunk>> unnamed_blocks(const Layer& layer, const std::vector<Layer>& others,
                                                               uint64_t chunk) const;
  std::vector<Layer> hidden_ancestors(const Layer& layer) const;
  Result<void> give_up_checksums(const Layer& parent, const Table& heir, uint64_t first, uint64_t* end);
  Result<void> release_layer(const Layer& gone, const Layer* heir);
  Result<void> copy_entries(const std::shared_ptr<Table>& table, uint64_t size);
  std::vector<uint32_t> left_out_by(const Table& table) const;  // with the gate held exclusively
  Result<BaseReference> reference_to(const BaseSpec& spec) const;
  Result<bool> active_is_empty() const;
  std::shared_ptr<const Source> source_of(const Layer& layer, std::vector<ChunkRange> present) const;
  const std::shared_ptr<const Source>& source_in_use(uint64_t layer) const;  // of a layer in the directory
  // With the gate held. `continued`: as Chain has it.
  std::shared_ptr<const Chain> chain_from(uint64_t layer, std::shared_ptr<const Chain> continued = nullptr) const;
  Result<std::shared_ptr<const Chain>> chain_of(const View& view) const;  // of a frozen layer
  // The layer that a view is of, if it still reads as it did; else kNotFound, or kBusy where it has become smaller.
  Result<const Layer*> layer_in_view(const View& view) const;
  bool is_readable(const Layer& layer, bool by_name) const;
  SnapshotInfo describe(const Layer& layer, uint64_t children) const;  // image_info.cc; with the gate held

  // image_rebase.cc; the caller holds `structure`
  Result<void> take_in_differences(const Layer& root, const std::shared_ptr<Table>& table,
                                   const std::function<bool(uint64_t chunk)>& go_on);

  // image_commit.cc; the caller holds `structure`
  Result<void> freeze_hidden();
  Result<void> copy_layer(ImageState* source, const Layer& from, const std::shared_ptr<Table>& table,
                          const Progress& progress);

  // image_compact.cc; the caller holds `structure`
  Result<void> compact_layer(const Layer& layer, const std::function<bool(uint64_t bytes)>& go_on);
  Result<bool> is_zero(uint32_t index, uint16_t mask) const;

  // image_checksums.cc
  struct FrozenLayer {
    Layer layer;
    std::shared_ptr<const Source> source;
    bool spent;  // is being merged away, or about to be
  };
  using Wanted = std::function<uint16_t(size_t block_in_chunk, const Entry&)>;  // sub-blocks
  std::vector<uint64_t> frozen_layers() const;                                  // ids
  std::optional<FrozenLayer> frozen_layer(uint64_t id) const;
  Result<std::array<Entry, kBlocksPerChunk>> frozen_entries(const Source& source, uint64_t chunk) const;
  Result<void> checksum_chunk(const FrozenLayer& in_hand, uint64_t chunk, bool from_disk, const Wanted& wanted,
                              const std::function<bool()>& go_on,
                              const std::function<void(const HeldBlock&, Result<uint32_t>)>& use) const;
  bool is_handed_over(const FrozenLayer& in_hand, uint64_t block, uint32_t index) const;
  Result<uint64_t> count_missing(const FrozenLayer& in_hand) const;  // bytes
  Result<ChecksumPage> make_checksums(const FrozenLayer& in_hand, uint64_t chunk, const std::function<bool()>& go_on,
                                      uint64_t* added) const;
  Result<void> add_checksums(const FrozenLayer& in_hand, const std::function<bool(uint64_t added)>& go_on);

  bool writable() const { return options.write; }
  // An error where a mapping of our file was torn: what was loaded, or stored, since does not count.
  Result<void> untorn() const { return active->is_torn() || file->is_torn() ? file->torn() : Result<void>(); }
  Error closed_error() const { return Error(Code::kClosed, path + " has been closed"); }
  Error stale_error() const { return Error(Code::kBaseChanged, path + ": a base of it keeps changing"); }
  template <typename T>
  Result<T> noted(Result<T> result) {
    if (!result) note(result.error());
    return result;
  }
  // The one way into a change of structure from outside: alone, of an image that is open for writing. `work()` runs with `structure` held,
  // and returns a Result; its failure is noted.
  template <typename Work>
  auto change_structure(const Work& work) {
    const auto alone = [&]() -> decltype(work()) {
      const std::lock_guard holding(structure);
      if (closed) return closed_error();
      if (!writable()) return Error(Code::kReadOnly, path + " is open for reading only");
      return work();
    };
    return noted(alone());
  }
  // A layer by its snapshot's name, until the next change of structure. With `structure` or the gate held. kNotFound.
  Result<const Layer*> snapshot_called(const std::string& name) const {
    const Layer* layer = directory.find(name);
    if (!layer) return Error(Code::kNotFound, path + " has no snapshot called " + name);
    return layer;
  }
  // For ImageInfo::last_error. What the caller gave up has not failed.
  void note(const Error& error) {
    if (error.code == Code::kCancelled) return;
    const std::lock_guard lock(noting);
    last_error = LastError{error, realtime_ns()};
  }

  const std::string path;
  const OpenOptions options;
  const std::shared_ptr<File> file;
  const Geometry geometry;
  bool bases_are_given =
      false;  // by descriptors (OpenOptions::given): no path is tried. Set before anybody knows the image

  std::mutex checksumming;
  std::mutex structure;
  std::mutex syncing;
  mutable Gate gate;
  std::array<std::mutex, 64> chunk_locks;

  std::atomic<bool> closing{false};  // set before close() waits

  // Changed with the gate held exclusively (as the writer: and `structure`).
  bool closed = false;
  bool owing = false;         // blocks were taken out of frozen layers, and readers elsewhere not told
  bool handing_over = false;  // a layer that is merged away loses entries that may come back by a crash
  bool leaks = false;  // something was not released: what is free is not all holes, and the image is not closed clean
  bool opened_clean = true;
  bool marked = false;  // the superblock says that the image is open by us
  Superblock superblock;
  uint64_t last_generation = 0;  // the highest that we have begun to write, or 0
  std::atomic<int> doubt{0};     // the errno for which that failed, where the file may say what has not happened; or 0
  Directory directory;
  std::shared_ptr<Table> active;
  std::shared_ptr<const Chain> below;  // what the active layer stands on
  std::optional<Coming> coming;        // during a rebase; a discard hides what lies there, too
  Chain::Sources sources;              // one for each layer of this file, in the directory's order
  BaseFiles given_bases;               // what somebody who may open them has opened for us
  BaseFiles base_files;                // the base's chain
  Chain::Sources base_sources;
  std::vector<LayerRef> base_chain;  // the same for people
  std::string base_resolved;
  uint64_t base_size = 0;          // bytes of the base's layer; 0: no base
  bool crashed = false;            // the host went down under the last writer
  bool names_dropped = false;      // snapshots that were not yet durable then have been hidden (in memory)
  std::optional<Watch> own_watch;  // read-only: another process may be the writer
  std::vector<Watch> base_watches;
  uint64_t epoch = 0;  // grows when chains built before are no longer right
  std::atomic<uint64_t> content_generation{0};

  std::unique_ptr<Space> space;  // the writer's

  // Blocks were given out to be mapped: whoever has them stores there without the engine.
  mutable std::atomic<bool> lent{false};

  mutable std::mutex marking;  // guards `unsynced`
  Unsynced unsynced;
  std::atomic<uint64_t> sync_arrivals{0};
  uint64_t sync_covered = 0;  // guarded by `syncing`

  mutable std::mutex noting;  // guards `last_error`
  std::optional<LastError> last_error;
};

// Structure changes are rare: who meets this many in a row is being fooled.
inline constexpr int kStaleRounds = 100;

// Does `attempt` again as long as a base was merged by another process meanwhile. What a first attempt wrote is simply
// written once more. For writers, who do not exchange a table of theirs that was torn.
template <typename Attempt>
auto while_stale(ImageState& state, const Attempt& attempt) {
  const auto attempt_whole = [&] {
    auto outcome = attempt();
    if (!outcome) return outcome;
    const std::shared_lock lock(state.gate);
    if (auto whole = state.untorn(); !whole) return decltype(outcome)(whole.error());
    return outcome;
  };
  auto outcome = attempt_whole();
  for (int round = 0; round < kStaleRounds && !outcome && outcome.error().code == Code::kBaseChanged; round++) {
    if (auto refreshed = state.refresh(); !refreshed) return decltype(outcome)(refreshed.error());
    outcome = attempt_whole();
  }
  return outcome;
}

}  // namespace pcow
