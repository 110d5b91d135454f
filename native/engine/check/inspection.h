// One look over an image file: what check.cc reports and repair.cc mends.
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
  kUnsound,    // bits that no writer stores
  kOutside,    // points behind the end of the file, or at the superblocks
  kStructure,  // points at a layer directory or a table
  kShared,     // points at a block that another entry points at
  kUnsynced,   // holds what is not durable, in a clean image
};

class Inspection {
 public:
  Inspection(std::shared_ptr<File> file, bool in_use) : file(std::move(file)) { report.in_use = in_use; }

  // Fails with kUnsupported, kCancelled, or where the machine does (kNoMemory, kPermission).
  Result<void> run(const Progress& progress);

  // The entries of a layer's table that are not 0; `use` gets the block's number and the word. Pages that cannot be read go
  // to `unreadable`.
  Result<void> for_each_entry(const Layer& layer, const std::function<Result<void>(uint64_t, uint64_t)>& use,
                              const std::function<void(uint64_t, const Error&)>& unreadable) const;
  // kShared only for blocks that a finished run has found to be.
  EntryFault fault_of(uint64_t word) const;
  // Data in blocks that nothing names, block by block, where it is not all zeros.
  Result<void> for_each_stray(const std::function<Result<void>(uint64_t, const std::vector<char>&)>& use) const;
  // Whether a sound entry, or a structure, has the block.
  bool is_named(uint64_t block) const { return used_.contains(block); }
  std::string name_of(const Layer& layer) const;
  uint64_t file_size() const { return file_size_; }
  const Geometry& geometry() const { return *geometry_; }

  const std::shared_ptr<File> file;
  CheckReport report;
  uint64_t newest = 0;                      // the highest generation that a slot tells of
  std::optional<Superblock> superblock;     // to go on from; empty: none can be read
  std::optional<LayerDirectory> directory;  // that it names
  bool slot_damaged = false;                // one of the slots is not as a writer leaves it
  bool older_directory = false;  // the newest slot's layer directory cannot be read: that of the other one counts
  // Where a bit of the layer directory was wrong: as it should be. Where none can be read: as it is.
  std::vector<uint8_t> mended_directory;
  std::vector<uint8_t> damaged_directory;
  uint64_t damaged_directory_offset = 0;
  uint64_t wanted_size = 0;  // bytes that the file must have for all tables to lie inside
  std::unordered_set<uint32_t> shared;
  std::vector<uint64_t> damaged_checksums;  // offsets of the pages in the file

 private:
  void add(Finding finding);
  void damage(const char* structure, const std::string& message, uint64_t file_offset);
  void damage(const char* structure, const std::string& message, uint64_t file_offset, const Layer& layer,
              uint64_t block, uint64_t blocks);

  Result<void> look_at_superblocks();
  void take_superblock(const std::optional<Superblock> (&found)[2], const std::optional<Superblock> (&mended)[2]);
  std::optional<LayerDirectory> look_at_directory(const Superblock& superblock);
  Result<void> look_at_tables(const Progress& progress);
  Result<void> look_at_shared();
  Result<void> look_at_checksums();
  Result<void> look_at_base();
  Result<void> look_at_free_space();
  void describe(const Layer& layer, uint64_t block, uint64_t word, EntryFault fault);
  bool is_being_merged(const Layer& parent) const;
  std::string owner_of(uint64_t block) const;

  std::optional<Geometry> geometry_;
  uint64_t file_size_ = 0;
  std::vector<Superblock> candidates_;  // to go on from, the likeliest first
  BlockSet structure_;                  // blocks of the superblocks, the layer directory, the tables and checksums
  BlockSet used_;                       // … and those that entries name
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

}  // namespace pcow
