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
// The id of this boot of the host, from /proc/sys/kernel/random/boot_id. All zeros if it cannot be
// read; that equals no boot id: page_cache_survived() compares them.
const Uuid& boot_id();

struct BaseReference {
  std::string path;  // as stored: absolute, or relative to the directory of the image
  Uuid uuid{};
  uint64_t layer = 0;
  // Of that layer's content (identity_of()); 0: older software wrote the reference.
  uint64_t identity = 0;
};

// Where a writer had the image open. Within one boot it tells whether the file's page cache is
// still the same (page_cache.h). All zeros: older software wrote it, or the filesystem tells
// nothing reliable.
struct CacheToken {
  uint64_t device = 0;  // st_dev
  uint64_t inode = 0;   // st_ino
  uint64_t mount = 0;   // the unique id of the mount (statx(2)); 0: the kernel has none
  // The inode of the filesystem's directory in /sys/fs, made anew by each mount; 0: none.
  uint64_t filesystem = 0;
  bool operator==(const CacheToken&) const = default;
};

// The process that opened the image for writing. The kernel does not tell who holds an
// open-file-description lock; this field does.
struct Opener {
  uint32_t pid = 0;
  uint64_t start_time = 0;  // clock ticks since boot, field 22 of /proc/PID/stat (proc(5))
  std::string command;      // at most 63 bytes
  std::string host;         // the name of its host, at most 63 bytes; older software left it empty

  static Opener self();
  // Whether this process of this host is still alive.
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
  // Frozen layers with ids up to this one are durable as a whole: the calls that took their
  // snapshots have returned.
  uint64_t sealed = 0;
  // The first of the free blocks with disk space that operations which give space back may use; a
  // hint.
  uint32_t reserve = 0;
  uint32_t reserve_blocks = 0;  // their number; 0: none
  // Where the source is in the file, bytes; of a lazy image only (source.h).
  uint64_t source_offset = 0;
  uint64_t source_length = 0;
  std::optional<BaseReference> base;
  Opener opener;

  bool is_lazy() const;
  // Whether another host, or another boot of this one, has opened it.
  bool opened_elsewhere() const { return boot != boot_id(); }
  std::array<uint8_t, kPageSize> encode() const;
  // Checks magic, version, checksum, and every field that can be checked alone. `where` names the
  // image in messages.
  static Result<Superblock> decode(const uint8_t* page, const std::string& where);
};

// The slot that counts. A slot that a crash has torn has a wrong checksum, and the other one
// counts; a slot with a right checksum was written on purpose and is never ignored. Fails with
// kNotAnImage if neither slot has the magic, with kUnsupported if a newer program wrote the slot
// that counts, and with kCorrupt if no slot has a right checksum or the two contradict each other.
Result<Superblock> read_superblock(const File& file);
// The same for the 2 * kPageSize bytes at the start of a file.
Result<Superblock> choose_superblock(const uint8_t* slots, const std::string& where);
// Whether the slot has the magic number and a right checksum: a writer wrote it, and all of it is
// there.
bool is_intact_slot(const uint8_t* page);
// Checks only whether this program knows the features that the slot that counts needs: otherwise
// kUnsupported.
Result<void> check_supported(const uint8_t* slots, const std::string& where);

// Writes into the slot that `superblock.generation` chooses (odd: the second). The caller orders
// this with syncs.
Result<void> write_superblock(File& file, const Superblock& superblock);
// Makes both slots durable.
Result<void> sync_superblock(File& file);

// Incompatible features.
inline constexpr uint64_t kLazy = 1;
inline constexpr uint64_t kKnownIncompatible = kLazy;
inline bool Superblock::is_lazy() const { return (incompatible & kLazy) != 0; }

// Read-only compatible features.
inline constexpr uint64_t kLayerChecksums = 1;
inline constexpr uint64_t kKnownReadOnlyCompatible = kLayerChecksums;

inline constexpr size_t kSuperblockChecksumOffset = 12;
inline constexpr size_t kGenerationOffset = 32;  // of the generation in a slot, which watchers read

}  // namespace pcow
