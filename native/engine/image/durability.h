// What of an open image is not durable yet, and making it durable: the marks of stored entries, the
// sync, the seal of frozen layers.
//
// Order of a sync (docs/format.md, "What a writer does, in which order"):
//   1. Take the marked chunks and the released blocks; note which sub-blocks are `written` but not
//      `durable`.
//   2. fdatasync: their data, their entries, and every freeing that was stored before are on the
//      disk.
//   3. Set `durable` for exactly the noted bits. (A write that came meanwhile waits for the next
//      sync.)
//   4. If step 3 set any bits, put these entries on the disk, and no more: what a busy writer has
//      written meanwhile can wait.
//   5. Punch the released blocks, after everyone who may still be reading them has passed the gate.
//      Free the blocks that the previous sync punched, because step 2 made those holes durable.
// The sync of a snapshot (in seal()) does steps 1 to 4 for the frozen layers only.
// In persistent memory everything that the engine has stored is already durable. Steps 1 to 4 are
// then only needed for what others have stored through mappings, for holes, and for entries that
// were not durable when the image was opened. Without any of these, and without released blocks, a
// sync makes no system call.
// A crash between 2 and 4 loses bits whose data is on the disk. That breaks no promise, because the
// sync had not returned.
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
  Durability(const ImageFile& image, Gate& gate, ChunkLocks& chunk_locks,
             const std::unique_ptr<Space>& space, Superblocks& superblocks)
      : image_(image),
        gate_(gate),
        chunk_locks_(chunk_locks),
        space_(space),
        superblocks_(superblocks) {}

  // Entries of the chunk have become `written` without being `durable`. The caller has stored them
  // before, and their data before that, so a sync that takes the mark covers both.
  void mark(const std::shared_ptr<Table>& table, uint64_t chunk);

  // Blocks are handed out to be mapped: a process that maps them stores there without the engine.
  void note_lent() {
    if (!lent_.load(std::memory_order_relaxed)) lent_.store(true);
  }

  // Blocks syncs, for a caller that drops a table: a sync stores into tables.
  [[nodiscard]] std::unique_lock<std::mutex> keep_away() { return std::unique_lock(syncing_); }
  void forget(const Table& table);  // removes the table's marks; syncs must be blocked

  // Everything that was written before the call is durable when it returns. The caller does not
  // hold the gate.
  Result<void> sync();
  // How many syncs were asked for, once blocks have been handed out.
  uint64_t syncs_asked_for() const { return arrivals_; }
  // Makes every layer that was frozen so far durable, and marks it as sealed: from then on no crash
  // can damage it. `end`: where the file ended when the newest of them was frozen, or later. The
  // caller holds `structure`, and not the gate. `active`: the table of the active layer.
  Result<void> seal(const LayerDirectory& directory, const std::shared_ptr<Table>& active,
                    uint64_t end);

  // Writes back the bytes of the file before `end`, only to make the next sync shorter.
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
  // One sync at a time. Taken before the gate and the chunks' locks, after `structure`.
  std::mutex syncing_;
  std::atomic<uint64_t> arrivals_{0};  // number of syncs that were asked for
  // Guarded by `syncing_`: syncs with numbers up to this one are done.
  uint64_t covered_ = 0;
  mutable std::mutex marking_;  // a leaf: never held while another lock is taken
  Unsynced unsynced_;           // guarded by `marking_`
};

}  // namespace pcow
