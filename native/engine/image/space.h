// Which blocks of the file are in use. This is not stored, but derived from the layer directory and
// the tables when an image is opened for writing (docs/format.md, "Free space"). Also how a
// released block becomes free:
//
//   released ──sync──▶ the freeing is durable; punched ──sync──▶ the hole is durable; free
//
// So a free block always reads as zeros, also after a host crash.
//
// A deletion gives space back, but first needs some: for a layer directory, a page of a table,
// copies. So an image that holds data keeps a reserve: free blocks with disk space, which read as
// zeros. Operations that give space back spend it when the disk is full, or when the file cannot
// grow; until it can be made again, no other operation gets a block. It remains when the image is
// closed (docs/format.md, "Free space").
//
// Thread-safe: one mutex guards everything. No system call is made while it is held, except to grow
// the file.
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

  // While deriving the map: marks these blocks as used, by data or by a table or layer directory.
  void mark_data(uint64_t first, uint64_t count);
  void mark_range(uint64_t first, uint64_t count);

  // A block that reads as zeros. `near`: take this block if it is free (0: any). Otherwise take one
  // from an unused window of neighbours, at this position in it (0 ≤ position < window_blocks()),
  // so that logical neighbours become physical ones; otherwise any block. kNoSpace or kTooLarge if
  // the file cannot grow.
  Result<uint32_t> allocate_block(uint64_t near, uint32_t position, uint32_t window_blocks);
  // Neighbouring blocks for a table or a layer directory, which read as zeros; returns the index of
  // the first. They get stretches of the file of their own, so that they do not separate the
  // neighbours of a chunk.
  Result<uint64_t> allocate_range(uint64_t count);

  // Reserved blocks, with disk space and not in use; `blocks` 0: none.
  struct Reserve {
    uint32_t first = 0;
    uint32_t blocks = 0;
  };
  Reserve reserve() const;
  // At opening: takes over the reserve of the previous writer, unless something uses it by now.
  void adopt_reserve(const Reserve& left);
  // Ensures, before a block is taken for data, that there is a reserve. kNoSpace if the disk is
  // full, or if it only has what a deletion is spending.
  Result<void> keep_reserve();
  // Gives the reserve back to the disk and to the file, for an operation that gives space back;
  // returns false if there is none. Until end_spending(), keep_reserve() leaves that much space to
  // such operations.
  bool spend_reserve();
  void end_spending();

  // Releases blocks. Nothing names them any more after what was stored before this call is durable.
  void release(uint64_t first, uint64_t count);
  // During a merge a released block may still be named by the layer that is being merged away:
  // holds such blocks back until the merge is over.
  void hold_releases(bool hold);
  // Releases a block that no layer names any more, even if releases are held back.
  void release_now(uint64_t index);

  // The two steps of a sync: take the blocks that were released before it; after its fdatasync,
  // punch these and free those that the previous sync punched.
  std::vector<uint64_t> take_released();
  Result<void> finish_sync(const std::vector<uint64_t>& released);
  // Whether more syncs would free blocks.
  bool has_pending() const;

  // Bytes: every block that was handed out is before this offset.
  uint64_t file_end() const;

  // Whether the whole block was inside the file when a sync last began: then its hole is durable.
  // (In persistent memory the file's new length is durable as soon as it has grown.)
  bool is_durable(uint64_t index) const;
  void note_sync_began();
  void note_sync_done();

  // Punches everything in the file that is not in use: after an unclean end, free blocks may hold
  // old bytes.
  Result<void> punch_free();
  // Punches everything behind the last block in use, to the end of the file: any program can append
  // bytes to a file, and `clean` says nothing about those. The file is not shortened, because
  // readers in other processes may have it mapped.
  Result<void> punch_tail();

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  // Enough, with one block, for one or two layer directories, pages of tables, what the filesystem
  // itself needs, and a copy.
  static constexpr uint64_t kReserveBytes = uint64_t{128} << 10;

  // kNone if there is none in the file.
  uint64_t find_free_run(uint64_t count, uint64_t align, uint64_t from) const;
  Result<void> grow_to(uint64_t blocks);
  uint32_t take(uint64_t index);
  void free(uint64_t first, uint64_t count);
  bool take_range(uint64_t first, uint64_t count);
  uint64_t reserve_blocks() const;  // the size of a reserve

  std::shared_ptr<File> file_;
  const Geometry geometry_;
  mutable std::mutex mutex_;
  static constexpr uint64_t kStretch = kBlocksPerChunk;
  // Numbers of the stretches that contain tables and layer directories.
  std::set<uint64_t> range_stretches_ = {0};
  BlockSet used_;
  uint64_t blocks_;           // whole blocks in the file
  uint64_t durable_blocks_;   // … as of the last sync
  uint64_t syncing_blocks_;   // … as of the beginning of the sync under way
  uint64_t window_hint_ = 0;  // no free window starts before this block
  uint64_t block_hint_ = 0;   // no free block lies before this one
  Reserve reserve_;
  Reserve place_of_reserve_;  // where the last one was
  bool making_reserve_ = false;
  bool spending_ = false;
  bool holding_ = false;
  std::set<uint64_t> held_;
  std::vector<uint64_t> released_;
  std::vector<uint64_t> punched_;
};

}  // namespace pcow
