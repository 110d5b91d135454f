// A sub-block becomes a layer's own: this is the only way in which a table comes to name a block of
// data, except that remote blocks are filled (image_fill.cc).
//
// make_own() does it in this order. Its caller holds the chunk's lock, and the table's page has
// disk space (Table::ensure()).
//   1. If the entry names no block, a free one is taken. It reads as zeros, also after a power cut
//      (space.h).
//   2. Sub-blocks that are *zero here* keep their `durable` bits, which from now on promise zeros
//      in the block that the entry names. So the block must be zeros durably before the entry can
//      reach the disk (kZerosBeforeEntry). It is, if it was inside the file when that was last
//      synced. Otherwise the file is synced now.
//   3. The data of whole sub-blocks is written (kDataBeforeEntry). If that fails, a block that was
//      taken is released: nothing names it.
//   4. The entry is stored, with the new sub-blocks `written` and not `durable`
//      (kDurableAfterSync). From here on readers see them.
//   5. The chunk is marked, so that the next sync makes them durable. The sync covers the entry and
//      the data, because they come before the mark.
//
// In persistent memory (File::is_persistent()) each of these steps is durable before the next
// begins. The data is copied and fenced (kCopyFencedBeforeEntry), the file is durably long enough
// (kLengthBeforeUse), and the entry, with the new sub-blocks `durable` as well, is flushed and
// fenced before the caller gets its answer. Nothing remains for a sync.
//
// Why a crash does no harm:
//   - A process that is killed before step 4 leaves the old entry, which reads as before, and the
//     next opener finds the block free. After step 4 the data is there: the kernel has both in its
//     page cache.
//   - After a power cut the entry may be on the disk without the data, but then its new bits are
//     not `durable`, and do not count (docs/format.md, "After a host crash"). Only a sync sets
//     these bits, after it has written the data back.
//   - The store of step 4 cannot find the disk full, because the table's page has its disk space
//     before step 1.
//
// Why the chunk's lock: `before` is loaded and the new entry stored under it. Without it two
// threads could each take a block for the same entry, and the second store would lose what the
// first had gained. Holding the gate exclusively is enough as well, and a table that no other
// thread knows needs no lock. An entry in such a table may be `durable` at once, because the
// superblock that names the table comes after a sync.
//
// Sub-blocks that become *zero here* name no block and have no data that could be missing:
// make_zero() only stores the entry. A run of empty blocks becomes own by the same steps, all
// together: make_own_run().
//
// A block is moved to another place of the file, while its process goes on storing through mappings
// of it (ChunkMove, image.h). This is done in the following order. From step 3 to step 5 the caller
// holds the gate exclusively and the chunk's lock, and no process stores through a mapping of the
// block: what was mapped has been taken down, and whoever accesses it waits. That is short, because
// nothing waits for the disk there.
//   1. A free block is taken, with disk space. It reads as zeros. The number of syncs that were
//      asked for until now is noted, and so is the block's entry. Then everything that the block
//      reads as is copied. Whoever stores meanwhile makes a copy that nobody has ever seen; step 3
//      finds that.
//   2. The copy is synced (kMovedBeforeEntry): what the old block holds may be durable, so the new
//      entry must not reach the disk before its data.
//   3. If the entry has another index now, or has lost sub-blocks (by a discard), the block stays.
//      Otherwise every sub-block that the layer holds is compared with its copy, and copied again
//      if it differs. No store is lost: those before the mappings were taken down are found here,
//      and later ones wait for step 5. What lower layers hold cannot differ.
//   4. If something was copied again, and a sync was asked for since step 1, the block stays: that
//      sync has promised what was stored before it, and has made it durable in the old block only
//      (kNoSyncSinceCopy). What was stored after the last sync is promised to nobody, so a crash
//      may leave what step 2 has made durable. A sync that is asked for after this step writes
//      back what step 3 has copied again.
//   5. The new entry is stored, with all sub-blocks `written` and `durable`, which is true since
//      step 2. The old block is released, like any other. So it keeps its content until a sync has
//      made the new entry durable (kFreeingBeforePunch).
// A block that stays may be tried again from step 1 on.
// After a crash at any point, the entry names the old block or the new one, and both hold what was
// promised. A sync that is under way during step 5 may have noted the old entry. If that had
// `written` bits which were not `durable`, the sync puts the table's page on the disk at its end
// (durability.h, step 4), so the new entry is there before it returns. If all bits were `durable`,
// the old entry, if it is what the disk has, names the old block, into which that sync has written
// back everything that it promises.
#pragma once

#include <memory>

#include "engine/format/table.h"
#include "engine/image/durability.h"
#include "engine/image/image_file.h"
#include "engine/image/space.h"
#include "engine/rules.h"

namespace pcow {

// It has no state of its own. The caller holds the chunk's lock, unless no other thread knows the
// table.
class OwnBlocks {
 public:
  OwnBlocks(const ImageFile& image, const std::unique_ptr<Space>& space, Durability& durability)
      : image_(image), space_(space), durability_(durability) {}

  enum class Purpose { kData, kGivingBack };
  struct Gained {
    uint16_t written;
    // Only in a table that no superblock names yet: the one that will comes after a sync.
    uint16_t durable = 0;
  };
  // Steps 1 and 2. `coming`: how many blocks the caller will take from this one on. A caller that
  // does not store an entry for the block releases it.
  Result<uint32_t> take_block(const Table& table, uint64_t block, const Entry& before,
                              Purpose purpose, uint64_t coming = 1);
  template <typename Fill>
  Result<Entry> make_own(const std::shared_ptr<Table>& table, uint64_t block, const Entry& before,
                         const Gained& gained, Purpose purpose, const Fill& fill);
  template <typename Read>
  Result<void> copy_sub_blocks(uint64_t offset, uint16_t mask, const Read& read) const;
  // `before` names no block.
  void make_zero(Table* table, uint64_t block, const Entry& before, uint16_t gained) const;
  Result<uint64_t> make_own_run(const std::shared_ptr<Table>& table, uint64_t block, uint64_t most);
  // Copies those of these sub-blocks that differ, from one offset of the file to another. Returns
  // whether there were any.
  Result<bool> copy_again(uint64_t from, uint64_t to, uint16_t mask) const;
  // Step 5 of a move: block `index` of the file holds everything that `block` reads as.
  void name_moved(Table* table, uint64_t block, const Entry& before, uint32_t index);
  // Gives bytes of the file disk space.
  Result<void> make_mappable(uint64_t offset, uint64_t length) const;

 private:
  Result<uint32_t> allocate_block(const Table& table, uint64_t block, uint64_t coming);
  Result<void> fill_cache(uint64_t index, uint64_t count) const;

  const ImageFile& image_;
  const std::unique_ptr<Space>& space_;
  Durability& durability_;
};

// `fill(offset)` writes the data of the sub-blocks `gained.written`; `offset` is that of the block
// in the file. It may read what lower layers hold, and the block that `before` names. Returns the
// entry that was stored.
template <typename Fill>
Result<Entry> OwnBlocks::make_own(const std::shared_ptr<Table>& table, uint64_t block,
                                  const Entry& before, const Gained& gained, Purpose purpose,
                                  const Fill& fill) {
  // The bytes that the layer holds already must come first.
  if (before.remote)
    return Error(Code::kRemote, image_.path + ": block " + std::to_string(block) +
                                    " has not been fetched yet; pcow prefetch fetches everything");
  const bool fresh = before.index == 0;
  Entry after = before;
  if (fresh) {
    auto index = take_block(*table, block, before, purpose);
    if (!index) return index.error();
    after.index = *index;
  }
  after.written |= gained.written;
  after.durable |= image_.file->is_persistent() ? gained.written : gained.durable;
  if (!keeps(Rule::kDataBeforeEntry)) table->store(block, after);
  const Result<void> filled = fill(uint64_t{after.index} << image_.geometry.block_shift());
  if (!filled) {
    if (fresh) space_->release(after.index, 1);
    return filled.error();
  }
  if (!keeps(Rule::kDurableAfterSync)) after.durable |= gained.written;
  table->store(block, after);
  if (after.written != after.durable) durability_.mark(table, block / kBlocksPerChunk);
  return after;
}

// A `fill` that copies sub-blocks: `read(within, to, length)` reads bytes of the block for each run
// in `mask`. The buffer is not zeroed, because all of it is read into. It is not a buffer that the
// thread keeps, because a file's observer (file.h) may call the engine again in the middle of a
// write.
template <typename Read>
Result<void> OwnBlocks::copy_sub_blocks(uint64_t offset, uint16_t mask, const Read& read) const {
  return image_.geometry.each_run(mask, [&](uint32_t within, uint32_t length) -> Result<void> {
    const auto bytes = std::make_unique_for_overwrite<char[]>(length);
    PCOW_TRY(read(within, bytes.get(), length));
    return image_.file->write(offset + within, bytes.get(), length);
  });
}

}  // namespace pcow
