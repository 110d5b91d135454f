// The superblock: two slots of a page each at the start of the file (docs/format.md, "Superblock").
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/disk/file.h"
#include "engine/format/geometry.h"

namespace pcow {

using Uuid = std::array<uint8_t, 16>;

std::string format_uuid(const Uuid& uuid);
Uuid random_uuid();
// This boot of the host, from /proc/sys/kernel/random/boot_id; all zeros where that cannot be read, which equals none:
// page_cache_survived() compares them.
const Uuid& boot_id();

struct BaseReference {
  std::string path;  // as stored: absolute, or relative to the directory of the image
  Uuid uuid{};
  uint64_t layer = 0;
  uint64_t identity = 0;  // of what that layer reads as (identity_of()); 0: older software wrote the reference
};

// Where a writer had the image open: in this boot, what tells whether the page cache of the file is still the same one
// (page_cache.h). All zeros: older software wrote it, or the filesystem tells nothing that could be relied on.
struct CacheToken {
  uint64_t device = 0;      // st_dev
  uint64_t inode = 0;       // st_ino
  uint64_t mount = 0;       // the unique id of the mount (statx(2)); 0: the kernel has none
  uint64_t filesystem = 0;  // the inode of the filesystem's directory in /sys/fs, made anew by each mount; 0: none
  bool operator==(const CacheToken&) const = default;
};

// Who opened the image for writing. The kernel does not say who holds an open-file-description lock; this does.
struct Opener {
  uint32_t pid = 0;
  uint64_t start_time = 0;  // clock ticks since boot, field 22 of /proc/PID/stat (proc(5))
  std::string command;      // at most 63 bytes

  static Opener self();
  // Whether that very process still lives.
  bool alive() const;
};

struct Superblock {
  uint64_t incompatible = 0;
  uint64_t compatible = 0;
  uint64_t read_only_compatible = 0;
  uint64_t generation = 0;
  Uuid uuid{};
  uint32_t block_shift = 16;
  bool clean = true;
  Uuid boot{};
  CacheToken cache;
  uint64_t directory_offset = 0;  // bytes
  uint64_t directory_length = 0;  // bytes
  uint64_t sealed = 0;   // frozen layers with ids up to this one are durable as a whole: their snapshots have returned
  uint32_t reserve = 0;  // free blocks that have disk space, for who gives space back; a hint
  uint32_t reserve_blocks = 0;  // so many; 0: none
  std::optional<BaseReference> base;
  Opener opener;

  std::array<uint8_t, kPageSize> encode() const;
  // Checks magic, version, checksum and every field that can be checked alone. `where` names the image in messages.
  static Result<Superblock> decode(const uint8_t* page, const std::string& where);
};

// The slot that counts. A slot that a crash has torn has a wrong checksum, and the other one counts; what has a right
// checksum was written on purpose and is never passed over. kNotAnImage where neither slot has the magic, kUnsupported
// where a newer program has written the slot that counts, kCorrupt where no slot has a right checksum, or the two
// contradict each other.
Result<Superblock> read_superblock(const File& file);
// The same for the 2 * kPageSize bytes at the start of a file.
Result<Superblock> choose_superblock(const uint8_t* slots, const std::string& where);
// Whether a writer has written this slot, and all of it is there: magic number and checksum.
bool is_intact_slot(const uint8_t* page);
// Only whether this program knows what the slot that counts needs: kUnsupported where it does not.
Result<void> check_supported(const uint8_t* slots, const std::string& where);

// Writes into the slot that `superblock.generation` chooses (odd: the second). The caller orders it with syncs.
Result<void> write_superblock(File& file, const Superblock& superblock);
// Both slots are on the disk.
Result<void> sync_superblock(File& file);

// Read-only compatible features.
inline constexpr uint64_t kLayerChecksums = 1;
inline constexpr uint64_t kKnownReadOnlyCompatible = kLayerChecksums;

inline constexpr size_t kSuperblockChecksumOffset = 12;
inline constexpr size_t kGenerationOffset = 32;  // of the generation in a slot: what a watcher looks at

}  // namespace pcow
