// The table of one layer: an array of entries in the file, one for each block of the image. A page
// of the table (512 entries: a chunk) that was never stored to is a hole.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "engine/disk/file.h"
#include "engine/format/entry.h"
#include "engine/format/geometry.h"

namespace pcow {

// The pages of a table that hold data, as the filesystem reports them (SEEK_DATA): ascending, not
// adjacent.
struct ChunkRange {
  uint64_t first;
  uint64_t end;
};
Result<std::vector<ChunkRange>> present_chunks(const File& file, uint64_t table_offset,
                                               uint64_t entries);
bool contains(const std::vector<ChunkRange>& ranges, uint64_t chunk);

// One page of a table, copied from the file; bytes beyond the end of the table are zeros.
using EntryPage = std::array<uint64_t, kBlocksPerChunk>;
Result<void> read_entry_page(const File& file, uint64_t table_offset, uint64_t entries,
                             uint64_t chunk, EntryPage* page);
// The same for `count` pages from chunk `first` on.
Result<void> read_entry_pages(const File& file, uint64_t table_offset, uint64_t entries,
                              uint64_t first, uint64_t count, EntryPage* pages);

// One bit for each chunk, which is set once and stays set. Any thread may set and read it.
class ChunkBits {
 public:
  explicit ChunkBits(uint64_t chunks) : words_((chunks + 63) / 64) {}
  bool get(uint64_t chunk) const {
    return words_[chunk / 64].load(std::memory_order_acquire) >> (chunk % 64) & 1;
  }
  void set(uint64_t chunk) {
    words_[chunk / 64].fetch_or(uint64_t{1} << (chunk % 64), std::memory_order_release);
  }

 private:
  std::vector<std::atomic<uint64_t>> words_;
};

// A mapped table. Loads need no lock. Stores are atomic words, visible to every process that maps
// the file. A thread that stores holds the chunk's lock, so that no read-modify-write is lost.
class Table {
 public:
  // Maps the table of a layer with `entries` blocks, at byte `offset` of the file.
  static Result<std::shared_ptr<Table>> map(std::shared_ptr<File> file, uint64_t offset,
                                            uint64_t entries, bool write);

  // For a new table, which has nothing to read ahead: the kernel would fill megabytes of its cache
  // with zeros, and the fault that caused it would wait for that.
  void expect_nothing() const { mapping_->expect_random(); }

  uint64_t entries() const { return entries_; }
  uint64_t chunks() const { return (entries_ + kBlocksPerChunk - 1) / kBlocksPerChunk; }
  // The writer does not touch a page that was never stored to: on tmpfs, reading a hole through a
  // mapping allocates a page, and raises SIGBUS if tmpfs is full.
  uint64_t load(uint64_t block) const {
    if (write_ && !may_hold(block / kBlocksPerChunk)) return 0;
    return std::atomic_ref<uint64_t>(mapping_->words()[block]).load(std::memory_order_acquire);
  }
  // The entries of a chunk, for a loop over many of them.
  class Chunk {
   public:
    uint64_t load(uint64_t within) const {
      return words_ ? std::atomic_ref<uint64_t>(words_[within]).load(std::memory_order_acquire) : 0;
    }

   private:
    friend Table;
    explicit Chunk(uint64_t* words) : words_(words) {}
    uint64_t* const words_;  // null: none was ever stored
  };
  Chunk chunk(uint64_t number) const {
    const bool empty = write_ && !may_hold(number);
    return Chunk(empty ? nullptr : mapping_->words() + number * kBlocksPerChunk);
  }
  // If true, loaded words may be zeros that the file does not hold (file.h).
  bool is_torn() const { return mapping_->is_torn(); }
  // Only for chunks that ensure() has prepared.
  void store(uint64_t block, Entry entry) {
    file_->store(&mapping_->words()[block], offset_ + block * 8, entry.pack());
  }
  // For `count` blocks from `block` on, which are neighbours in the file as well. `first` is the
  // entry of the first one.
  void store_run(uint64_t block, uint64_t count, Entry first);
  // Makes the entries of chunks [first, end), and perhaps others, durable.
  Result<void> sync(uint64_t first, uint64_t end) {
    return file_->sync_stored(offset_ + first * kPageSize, (end - first) * kPageSize);
  }
  // The chunks for which may_hold() is true. Complete only when no thread stores any more.
  std::vector<ChunkRange> present() const;
  // Reserves disk space for the chunk's page, so that storing into it cannot raise SIGBUS on a full
  // disk.
  Result<void> ensure(uint64_t chunk);
  // False: no entry of the chunk was ever stored. Only valid for a table that no other process
  // stores to.
  bool may_hold(uint64_t chunk) const { return present_.get(chunk); }

 private:
  Table(std::shared_ptr<File> file, std::unique_ptr<Mapping> mapping, uint64_t offset,
        uint64_t entries, bool write)
      : file_(std::move(file)),
        mapping_(std::move(mapping)),
        offset_(offset),
        entries_(entries),
        write_(write),
        present_(chunks()),
        ensured_(chunks()) {}

  std::shared_ptr<File> file_;
  std::unique_ptr<Mapping> mapping_;
  const uint64_t offset_;   // bytes
  const uint64_t entries_;  // blocks of the image
  const bool write_;        // opened for writing, by this process only
  ChunkBits present_;       // chunks whose page may hold entries
  ChunkBits ensured_;       // chunks whose page is known to have disk space
};

}  // namespace pcow
