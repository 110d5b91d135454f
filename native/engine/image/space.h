// Which blocks of the file are in use. Never stored: derived from the layer directory and the tables when an image is opened
// for writing (docs/format.md, "Free space"). Also the way of a freed block back to use:
//
//   released ──sync──▶ the freeing is durable; punched ──sync──▶ the hole is durable; free
//
// so that a free block always reads as zeros, and still does after a host crash.
//
// A deletion, which gives space back, needs some first: for a layer directory, a page of a table, copies. So an image that holds data keeps a
// reserve: free blocks with disk space behind them, which read as zeros. What gives space back spends it when the disk is full, or
// the file cannot grow; nothing else takes a block as long as it cannot be made again. It stays at rest (docs/format.md, "Free space").
//
// Thread-safe: one mutex guards all; it is never held over a system call, except that growing the file is.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "engine/disk/block_set.h"
#include "engine/disk/file.h"
#include "engine/format/geometry.h"

namespace pcow {

class Space {
 public:
  Space(std::shared_ptr<File> file, const Geometry& geometry, uint64_t file_size);

  // While deriving the map: these blocks are in use, by data or by a table or layer directory.
  void mark_data(uint64_t first, uint64_t count);
  void mark_range(uint64_t first, uint64_t count);

  // A block that reads as zeros. `near`: take this very one if it is free (0: no wish). Otherwise from a window of
  // neighbours that nobody uses yet, at this position in it (0 ≤ position < window_blocks()), so that logical
  // neighbours become physical ones; otherwise any. kNoSpace or kTooLarge where the file cannot grow.
  Result<uint32_t> allocate_block(uint64_t near, uint32_t position, uint32_t window_blocks);
  // Neighbouring blocks for a table or a layer directory; returns the first one's index. Reads as zeros. They keep to stretches
  // of the file of their own, so that they do not sit between the neighbours of a chunk.
  Result<uint64_t> allocate_range(uint64_t count);

  // Blocks with disk space in hand, not in use; 0 of them: none.
  struct Reserve {
    uint32_t first = 0;
    uint32_t blocks = 0;
  };
  Reserve reserve() const;
  // At opening: that of the one who had the image before, if nothing has come to use it.
  void adopt_reserve(const Reserve& left);
  // Before a block is taken for data: that there is one. kNoSpace where the disk is full, or has no more than what is being spent.
  Result<void> keep_reserve();
  // Gives it back to the disk and to the file, for one who gives space back; false: there is none. Until it is told that they are done,
  // keep_reserve() leaves that much to them.
  bool spend_reserve();
  void end_spending();

  // Blocks that nothing points to any more once what was stored before this call is durable.
  void release(uint64_t first, uint64_t count);
  // While a merge is under way a released block may still be named by the layer that is merged away: keep such blocks
  // back until the merge is over.
  void hold_releases(bool hold);
  // One that no layer names any more, whatever is held back.
  void release_now(uint64_t index);

  // The two steps of a sync: take what was released before it; after its fdatasync, punch that and free what the
  // sync before had punched.
  std::vector<uint64_t> take_released();
  Result<void> finish_sync(const std::vector<uint64_t>& released);
  // Whether punched or released blocks would become free by further syncs.
  bool has_pending() const;

  // Bytes: every block that was handed out lies before it.
  uint64_t file_end() const;

  // Whether the whole block lay inside the file when a sync last began: its being a hole is durable. (In persistent memory the file reaches
  // there durably as soon as it has grown.)
  bool is_durable(uint64_t index) const;
  void note_sync_began();
  void note_sync_done();

  // Punches out everything in the file that is not in use: after an unclean end, free blocks may hold stale bytes.
  Result<void> punch_free();
  // Punches out what lies behind the last block in use, to the very end of the file: anybody can append bytes to a file,
  // and `clean` says nothing of those. The file is not shortened, since readers in other processes may have it mapped.
  Result<void> punch_tail();

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  // And a block: a layer directory or two, pages of tables, what the filesystem itself needs, and a copy.
  static constexpr uint64_t kReserveBytes = uint64_t{128} << 10;

  uint64_t find_free_run(uint64_t count, uint64_t align, uint64_t from) const;  // kNone where none lies in the file
  Result<void> grow_to(uint64_t blocks);
  uint32_t take(uint64_t index);
  void free(uint64_t first, uint64_t count);
  bool take_range(uint64_t first, uint64_t count);
  uint64_t reserve_blocks() const;  // so many a reserve has

  std::shared_ptr<File> file_;
  const Geometry geometry_;
  mutable std::mutex mutex_;
  static constexpr uint64_t kStretch = kBlocksPerChunk;
  std::set<uint64_t> range_stretches_ = {0};  // numbers of the stretches that hold tables and directories
  BlockSet used_;
  uint64_t blocks_;           // whole blocks in the file
  uint64_t durable_blocks_;   // … as of the last sync
  uint64_t syncing_blocks_;   // … as of the beginning of the sync under way
  uint64_t window_hint_ = 0;  // no free window starts before this block
  uint64_t block_hint_ = 0;   // no free block lies before this one
  Reserve reserve_;
  Reserve place_of_reserve_;  // where one was before
  bool making_reserve_ = false;
  bool spending_ = false;
  bool holding_ = false;
  std::set<uint64_t> held_;
  std::vector<uint64_t> released_;
  std::vector<uint64_t> punched_;
};

}  // namespace pcow
