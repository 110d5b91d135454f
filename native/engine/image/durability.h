// What of an open image is not durable yet, and making it so: the marks of those who store entries, the sync, the seal of frozen layers.
//
// Order of a sync (docs/format.md, "What a writer does, in which order"):
//   1. take the marked chunks and the released blocks; note which sub-blocks are `written` but not `durable`
//   2. fdatasync: their data, their entries, and every freeing stored before are on the disk
//   3. set `durable` for exactly the noted bits (a write that came in meanwhile keeps waiting for the next sync)
//   4. where step 3 set anything: those entries are on the disk (and no more: what a busy writer has written meanwhile can wait)
//   5. punch the released blocks, after everybody who may still be reading them has passed the gate; free what the
//      sync before punched, for step 2 made those holes durable
// The sync of a snapshot (in seal()) takes steps 1 to 4 for the frozen layers alone.
// In persistent memory what the engine has stored is durable already. Then steps 1 to 4 are only needed for what others have stored through
// mappings, for holes, and for entries that were not durable when the image was opened; without any of these, and without released blocks,
// a sync makes no system call.
// A crash between 2 and 4 loses bits whose data is on the disk; the sync had not returned, so nothing was promised.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "engine/format/layer_directory.h"
#include "engine/format/table.h"
#include "engine/image/chunk_locks.h"
#include "engine/image/gate.h"
#include "engine/image/image_file.h"
#include "engine/image/space.h"
#include "engine/image/superblocks.h"

namespace pcow {

class Durability {
 public:
  Durability(const ImageFile& image, Gate& gate, ChunkLocks& chunk_locks, const std::unique_ptr<Space>& space,
             Superblocks& superblocks)
      : image_(image), gate_(gate), chunk_locks_(chunk_locks), space_(space), superblocks_(superblocks) {}

  // Entries of the chunk have become `written` without being `durable`. The caller has stored them before, and their data before that: a
  // sync that takes the mark covers both.
  void mark(const std::shared_ptr<Table>& table, uint64_t chunk);

  // Blocks are given out to be mapped: whoever has them stores there without the engine.
  void note_lent() {
    if (!lent_.load(std::memory_order_relaxed)) lent_.store(true);
  }

  // Keeps syncs away, for whoever drops a table: a sync stores into tables.
  [[nodiscard]] std::unique_lock<std::mutex> keep_away() { return std::unique_lock(syncing_); }
  void forget(const Table& table);  // its marks; with syncs kept away

  // All that was written before the call is durable afterwards. Without the gate.
  Result<void> sync();
  // Every layer frozen so far is made durable, and said to be: from then on a crash takes nothing from it. `end`: where the file ended
  // when the newest of them was frozen, or later. With `structure` held, without the gate; `active`: the table of the active layer.
  Result<void> seal(const LayerDirectory& directory, const std::shared_ptr<Table>& active, uint64_t end);

  // Bytes of the file before `end`; only to make the next sync shorter.
  Result<void> write_back(uint64_t end) const;

 private:
  using Unsynced = std::map<std::shared_ptr<Table>, std::set<uint64_t>>;  // chunks of tables

  Result<void> sync_frozen(const std::shared_ptr<Table>& active, uint64_t end);
  bool needs_kernel() const;
  template <typename WriteBack>
  Result<void> make_durable(const Unsynced& marked, const WriteBack& write_back);

  const ImageFile& image_;
  Gate& gate_;
  ChunkLocks& chunk_locks_;
  const std::unique_ptr<Space>& space_;
  Superblocks& superblocks_;

  std::atomic<bool> lent_{false};  // see note_lent()
  std::mutex syncing_;             // one sync at a time. Taken before the gate and the chunks' locks, after `structure`
  std::atomic<uint64_t> arrivals_{0};  // syncs that were asked for
  uint64_t covered_ = 0;               // guarded by `syncing_`: arrivals up to this one are done
  mutable std::mutex marking_;         // a leaf: never held while another lock is taken
  Unsynced unsynced_;                  // guarded by `marking_`
};

}  // namespace pcow
