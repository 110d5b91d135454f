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
// Blocks that are neighbours in the image should be neighbours in the file, so that they can be
// mapped and read in one piece. So a chunk of a layer gets a window: aligned blocks of the file,
// each of which is kept for the block at the same position of the chunk. (The file is sparse: what
// stays unused of a window takes no disk space.) But every layer has chunks, and most of them get
// few blocks before they are frozen. If each had a whole window, every snapshot could make the file
// longer by the size of the image. So:
//   - As long as the image has no frozen layers, the first block of a chunk gets a whole window:
//     all of them together are as long as the image.
//   - Later it does as long as the file is not longer than twice what frozen layers have: then a
//     layer that replaces all of that finds room.
//   - After that a block takes the first free place, or the one after its neighbour. Only a chunk
//     whose blocks form a long sequence gets windows, each at most four times as long as the
//     sequence; and a chunk that has a quarter of its blocks gets a whole one.
//   - Windows make the file longer only up to a limit (roomy_end()).
//   - When a layer is frozen, what it has not used of its windows is for everyone.
// A chunk that has become too scattered for a monitor is moved into a whole window (own_blocks.h).
//
// Thread-safe: one mutex guards everything. No system call is made while it is held, except to grow
// the file.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
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

  // Where a block of a layer would lie well.
  struct Wish {
    uint64_t image_blocks = 0;  // the size of the image
    uint64_t position = 0;      // of the block in its chunk
    uint64_t coming = 1;        // how many will follow at once, with this one
    // How many blocks the layer has in the chunk, and how long the sequence is that this one
    // continues; both with those that are coming.
    uint64_t own = 0;
    uint64_t sequence = 0;
    uint64_t in_window = 0;  // its place in the window of another block of the chunk; 0: none
    uint64_t next = 0;       // the place after the block before it, or before the block after it
  };
  // Where the wished block lies in the window of another block of its chunk: of the one at position
  // `other`, which is block `index` of the file, or nowhere. 0: that one is in no window that
  // reaches so far.
  static uint64_t place_in_window(const Wish& wish, uint64_t index, uint64_t other) {
    // Windows are aligned, so the difference tells how large this one may be. (One branch for all:
    // a processor could not predict three.)
    const uint64_t shift = (index - other) | kStretch;
    const uint64_t size = shift & -shift;
    const bool is_window = (index != 0) & (size >= smallest_window(wish.image_blocks));
    const bool reaches = is_window & ((other ^ wish.position) < size);
    return reaches ? index + wish.position - other : 0;
  }
  // A block that reads as zeros. kNoSpace or kTooLarge if the file cannot grow.
  Result<uint32_t> allocate_block(const Wish& wish);
  // Takes this very block if it is free.
  bool take_block(uint64_t index);
  bool is_free(uint64_t index) const;
  // A whole window, of which the first `count` blocks are taken, for a chunk that is moved. The
  // file grows for it if necessary. Returns the index of the first block.
  Result<uint64_t> take_window(uint64_t count, uint64_t image_blocks);
  // A layer was frozen, or there are frozen layers.
  void note_frozen();
  // While a frozen layer is sealed, what lies before the end of the file is written back. Scattered
  // blocks stay behind that end meanwhile, so that their writers do not wait for the disk, as long
  // as the file may grow.
  void begin_seal();
  void end_seal();
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
  // bytes to a file, and `clean` says nothing about those. The file keeps its length.
  Result<void> punch_tail();
  // At closing: cuts off what lies behind the last block in use, except the rest of a window. What
  // was released is in use until it is a durable hole. If the file cannot become shorter, it stays
  // as it is.
  void shorten(uint64_t image_blocks);

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  static constexpr uint64_t kStretch = kBlocksPerChunk;
  // The sizes of windows are powers of two, from this to a chunk (or to the image, if it is
  // smaller).
  static constexpr uint64_t kSmallestWindow = 32;
  static constexpr uint64_t kLongSequence = 8;  // blocks
  static constexpr uint64_t kManyOfChunk = kStretch / 4;
  // Enough, with one block, for one or two layer directories, pages of tables, what the filesystem
  // itself needs, and a copy.
  static constexpr uint64_t kReserveBytes = uint64_t{128} << 10;

  static uint64_t largest_window(uint64_t image_blocks) {
    return std::min(std::bit_ceil(image_blocks), kStretch);
  }
  static uint64_t smallest_window(uint64_t image_blocks) {
    return std::min(largest_window(image_blocks), kSmallestWindow);
  }
  uint64_t roomy_end(uint64_t image_blocks) const;
  uint64_t first_end(uint64_t image_blocks) const;
  uint64_t window_size(const Wish& wish) const;
  bool spares(uint64_t index, uint64_t image_blocks) const;
  uint64_t find_window(uint64_t size, uint64_t image_blocks);
  void open_window(uint64_t first, uint64_t size);
  bool is_open(uint64_t index) const { return open_windows_.contains(index / kSmallestWindow); }
  uint64_t find_scattered(uint64_t image_blocks);
  uint64_t next_end(uint64_t image_blocks) const;
  bool is_free_now(uint64_t index) const;
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
  // Numbers of the stretches that contain tables and layer directories.
  std::set<uint64_t> range_stretches_ = {0};
  BlockSet used_;
  uint64_t blocks_;          // whole blocks in the file
  uint64_t durable_blocks_;  // … as of the last sync
  uint64_t syncing_blocks_;  // … as of the beginning of the sync under way
  bool has_frozen_ = false;  // there are frozen layers
  uint64_t frozen_ = 0;      // blocks that were in use when the last one was frozen
  // No free window of 2^i blocks starts before this block.
  std::array<uint64_t, std::bit_width(kStretch)> window_hints_{};
  // In units of kSmallestWindow: windows that layers may go on using, which scattered blocks spare.
  BlockSet open_windows_;
  uint64_t block_hint_ = 0;  // no free block lies before this one
  // The same for blocks that are neither in open windows nor among tables.
  uint64_t scattered_hint_ = 0;
  bool sealing_ = false;  // then the hint is the end that the file had
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
