// The layers of an open image, as they are read: the layer directory, the active layer's table, the
// frozen layers as links of chains, and the chain on which the active layer stands.
//
// All of it changes with the gate held exclusively (in the writer, also with `structure` held), so
// a thread that holds one of the two may read. Another process may change the files as well: the
// image itself if this process is a reader, and bases in any case. is_stale() detects that, and
// refresh() loads the new state.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "engine/format/layer_directory.h"
#include "engine/format/table.h"
#include "engine/image/bases.h"
#include "engine/image/chain.h"
#include "engine/image/gate.h"
#include "engine/image/image_file.h"
#include "engine/image/loaded_structure.h"
#include "engine/image/superblocks.h"
#include "engine/image/view.h"

namespace pcow {

// Changes of structure are rare: a caller that meets so many in a row is being fooled.
inline constexpr int kStaleRounds = 100;

// The coming layers.
struct NextLayers {
  LayerDirectory directory;
  std::shared_ptr<Table> table;  // of a new active layer; null: no new one
  // A frozen layer that has inherited chunks by a merge, and the same as a link of chains; 0: none.
  uint64_t heir = 0;
  std::shared_ptr<const Source> heir_source;
  std::optional<BaseChain> bases;  // set if the image stands on other bases from then on
};

class Layers {
 public:
  Layers(const ImageFile& image, Gate& gate, Superblocks& superblocks, Bases& bases)
      : image_(image), gate_(gate), superblocks_(superblocks), bases_(bases) {}

  const LayerDirectory& directory() const { return directory_; }
  const Layer& active_layer() const { return directory_.active_layer(); }
  const std::shared_ptr<Table>& active() const { return active_; }  // the active layer's table
  bool active_is_empty() const;
  const Chain& below() const { return *below_; }  // what the active layer stands on
  std::shared_ptr<const Chain> shared_below() const { return below_; }
  // kRemote: the active layer itself (of a draft) holds the block, and it is not here.
  Error remote_in_active(uint64_t block) const {
    return remote_error(*image_.file, superblocks_.current().uuid, directory_.active, block);
  }
  // The number of layers below that are in this file.
  size_t own_sources_below() const {
    return below_->sources().size() - bases_.current().sources.size();
  }
  bool is_closed() const { return closed_; }
  bool is_lazy() const { return superblocks_.current().is_lazy(); }
  bool only_durable() const { return crashed_; }  // the host crashed under the last writer
  bool names_dropped() const { return names_dropped_; }
  uint64_t epoch() const { return epoch_; }
  // A layer by its snapshot's name; valid until the next change of structure. kNotFound.
  Result<const Layer*> snapshot_called(const std::string& name) const;
  // The layer of a view, if it still reads as it did; otherwise kNotFound, or kBusy if it has
  // become smaller.
  Result<const Layer*> layer_in_view(const View& view) const;
  Result<std::shared_ptr<const Chain>> chain_of(const View& view) const;  // of a frozen layer
  // A frozen layer of this file as a link of chains: as it would be with these chunks, and as it
  // is.
  std::shared_ptr<const Source> source_of(const Layer& layer,
                                          std::vector<ChunkRange> present) const;
  const std::shared_ptr<const Source>& source_in_use(uint64_t layer) const;
  // Any thread may call this, without locks.
  uint64_t content_generation() const { return content_generation_; }

  // What lower layers hold, for a caller that decides by it what to store. What these return stays
  // true for ever: a frozen layer never changes its content, and after the look the tables and
  // blocks that were looked at still counted. A base's writer releases blocks only after the
  // superblock that no longer names them, and uses them again two syncs later. So the superblock
  // may come between the look and the store. kBaseChanged: it came too early, and the caller must
  // look again.
  Result<uint16_t> mask_below(uint64_t block) const;  // as Chain::look()
  // What zeros must hide: also what a running rebase brings below.
  Result<uint16_t> hidden_below(uint64_t block) const;
  // Bytes of the block, read through `own`, an entry of the active layer.
  Result<void> read_below(uint64_t block, const Entry& own, uint32_t from, char* to,
                          size_t length) const;
  template <typename T>
  Result<T> confirm(Look<T> look) const {
    return confirm(std::move(look.seen_));
  }
  template <typename T>
  Result<T> confirm(Result<T> look) const {
    // This also replaces the error of a look that failed: it may have read something else by then.
    return is_stale() ? Result<T>(image_.stale_error()) : look;
  }

  // Whether another process has changed the structure of a file of the chain, or of this one.
  bool is_stale() const { return is_own_stale() || bases_.is_stale(); }
  // In a reader, a table that was torn is mapped again.
  bool is_own_stale() const {
    return own_watch_ && (own_watch_->has_changed() || active_->is_torn());
  }
  // An error if a mapping of the image's file was torn: what was loaded or stored since does not
  // count.
  Result<void> untorn() const {
    return active_->is_torn() || image_.file->is_torn() ? image_.file->torn() : Result<void>();
  }
  // Loads again what another process has changed. If that fails, everything stays as it was, and
  // stale: reads fail until it succeeds. The caller does not hold the gate. bring_up_to_date() does
  // it only if needed.
  Result<void> refresh();
  Result<void> bring_up_to_date();
  // Repeats `attempt` as long as another process has merged layers of a base meanwhile. What a
  // first attempt wrote is written once more. For writers, which do not replace a torn table of
  // their own. The caller does not hold the gate.
  template <typename Attempt>
  auto while_stale(const Attempt& attempt);

  // Changes: the caller holds the gate exclusively.
  //
  // Loads layer directory, bases and active layer from the file; if that fails, nothing is changed.
  // `recovered`: everything in this image counts.
  Result<void> load(bool recovered);
  void adopt(NextLayers next);  // after its superblock has been written
  // Notes that a frozen layer now holds these chunks.
  void adopt_chunks(const Layer& layer, std::vector<ChunkRange> present);
  void renew_chains();   // what existing chains remember is no longer right
  void renew_sources();  // the image has become lazy, or is no longer
  void set_handing_over(bool handing_over) { handing_over_ = handing_over; }
  void set_closed() { closed_ = true; }
  // Any thread may call this, without locks.
  void note_change_of_content() { content_generation_++; }

 private:
  Chain::Sources next_sources(const NextLayers& next) const;
  // `continued`: as Chain has it.
  std::shared_ptr<const Chain> chain_from(uint64_t layer,
                                          std::shared_ptr<const Chain> continued = nullptr) const;
  bool is_readable(const Layer& layer, bool by_name) const;

  const ImageFile& image_;
  Gate& gate_;
  Superblocks& superblocks_;
  Bases& bases_;

  // Guarded by the gate.
  bool closed_ = false;
  LayerDirectory directory_;
  std::shared_ptr<Table> active_;
  // One for each layer of this file, in the order of the layer directory; null for the active one.
  Chain::Sources sources_;
  std::shared_ptr<const Chain> below_;
  uint64_t epoch_ = 0;  // grows when existing chains are no longer right
  // A layer that is being merged away loses entries that may come back after a crash.
  bool handing_over_ = false;
  bool crashed_ = false;  // the host crashed under the last writer
  // Snapshots that were not durable then have been hidden (in memory).
  bool names_dropped_ = false;
  std::optional<Watch> own_watch_;  // set for a reader: another process may be the writer
  std::atomic<uint64_t> content_generation_{0};
};

template <typename Attempt>
auto Layers::while_stale(const Attempt& attempt) {
  const auto attempt_whole = [&] {
    auto outcome = attempt();
    if (!outcome) return outcome;
    const std::shared_lock lock(gate_);
    if (auto whole = untorn(); !whole) return decltype(outcome)(whole.error());
    return outcome;
  };
  auto outcome = attempt_whole();
  for (int round = 0;
       round < kStaleRounds && !outcome && outcome.error().code == Code::kBaseChanged; round++) {
    if (auto refreshed = refresh(); !refreshed) return decltype(outcome)(refreshed.error());
    outcome = attempt_whole();
  }
  return outcome;
}

}  // namespace pcow
