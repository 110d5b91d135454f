// One inspection of an image file: check.cc reports what it finds, and repair.cc mends it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <unordered_set>

#include "engine/check/check.h"
#include "engine/disk/block_set.h"
#include "engine/format/entry.h"
#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"
#include "engine/format/table.h"

namespace pcow {

enum class EntryFault {
  kNone,
  kUnsound,    // has bits that no writer stores
  kOutside,    // names a block behind the end of the file, or of the superblocks
  kStructure,  // names a block of a layer directory or a table
  kShared,     // names a block that another entry names, too
  kUnsynced,   // holds sub-blocks that are not durable, in a clean image
};

class Inspection {
 public:
  Inspection(std::shared_ptr<File> file, bool in_use) : file(std::move(file)) {
    report.in_use = in_use;
  }

  // Fails only with kUnsupported or kCancelled, or if the machine fails (kNoMemory, kPermission).
  Result<void> run(const Progress& progress);

  // Calls `use` with the block's number and the word for each entry of a layer's table that is not
  // 0. Pages that cannot be read go to `unreadable`.
  Result<void> for_each_entry(const Layer& layer,
                              const std::function<Result<void>(uint64_t, uint64_t)>& use,
                              const std::function<void(uint64_t, const Error&)>& unreadable) const;
  // Returns kShared only after a finished run.
  EntryFault fault_of(uint64_t word) const;
  // Calls `use` for each block that nothing names and that is not all zeros.
  Result<void> for_each_stray(
      const std::function<Result<void>(uint64_t, const std::vector<char>&)>& use) const;
  // Whether a sound entry, or a structure, names the block.
  bool is_named(uint64_t block) const { return used_.contains(block); }
  std::string name_of(const Layer& layer) const;
  uint64_t file_size() const { return file_size_; }
  const Geometry& geometry() const { return *geometry_; }

  const std::shared_ptr<File> file;
  CheckReport report;
  uint64_t newest = 0;                      // the highest generation of any slot
  std::optional<Superblock> superblock;     // the one that is used; empty: none can be read
  std::optional<LayerDirectory> directory;  // that the superblock names
  bool slot_damaged = false;                // one of the slots is not as a writer leaves it
  // The layer directory of the newest slot cannot be read, so that of the other slot is used.
  bool older_directory = false;
  // The layer directory with a wrong bit corrected, or, if none can be read, as it lies in the
  // file.
  std::vector<uint8_t> mended_directory;
  std::vector<uint8_t> damaged_directory;
  uint64_t damaged_directory_offset = 0;
  uint64_t wanted_size = 0;  // bytes that the file must have to contain all tables
  std::unordered_set<uint32_t> shared;
  std::vector<uint64_t> damaged_checksums;  // file offsets of the pages

 private:
  void add(Finding finding);
  void damage(const char* structure, const std::string& message, uint64_t file_offset);
  void damage(const char* structure, const std::string& message, uint64_t file_offset,
              const Layer& layer, uint64_t block, uint64_t blocks);

  Result<void> look_at_superblocks();
  void take_superblock(const std::optional<Superblock> (&found)[2],
                       const std::optional<Superblock> (&mended)[2]);
  std::optional<LayerDirectory> look_at_directory(const Superblock& superblock);
  Result<void> look_at_tables(const Progress& progress);
  Result<void> look_at_shared();
  Result<void> look_at_checksums();
  Result<void> look_at_source();
  Result<void> look_at_base();
  Result<void> look_at_free_space();
  void describe(const Layer& layer, uint64_t block, uint64_t word, EntryFault fault);
  bool is_being_merged(const Layer& parent) const;
  std::string owner_of(uint64_t block) const;

  std::optional<Geometry> geometry_;
  uint64_t file_size_ = 0;
  std::vector<Superblock> candidates_;  // that may be used, the likeliest first
  // Blocks of the superblocks, the layer directory, tables and checksums.
  BlockSet structure_;
  BlockSet used_;  // … and those that entries name
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

}  // namespace pcow
