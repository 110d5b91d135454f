// Checking an image without opening it, and mending what can be mended without guessing
// (docs/check.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/image/image.h"

namespace pcow {

class Geometry;
struct Layer;

enum class Severity {
  kNote,    // nothing is wrong, but worth knowing
  kLeak,    // bytes that should be a hole, and are not
  kDamage,  // something that the format forbids
};

// One finding. Offsets and lengths are in bytes; a field that does not apply is 0, or empty.
struct Finding {
  Severity severity = Severity::kDamage;
  std::string
      // "file", "superblock", "directory", "table", "entry", "block", "checksums", "source", "base",
      // "free space".
      structure;
  std::string message;       // a sentence without the image's name and without a full stop
  uint64_t file_offset = 0;  // in the image file
  uint64_t layer = 0;        // id
  std::string snapshot;      // that layer's name
  uint64_t offset = 0;       // in the flat file
  uint64_t length = 0;       // 0: the finding concerns no range
  bool repaired = false;
};

// A finding of damage to `blocks` blocks of a layer, from `block` on.
Finding damage_in(const Layer& layer, const Geometry& geometry, const char* structure,
                  const std::string& message, uint64_t file_offset, uint64_t block,
                  uint64_t blocks);

inline constexpr size_t kListedFindings = 1000;  // of each severity; others are only counted

// Bytes of a flat file that a repair could not restore.
struct LostRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool certain = false;  // true: they read differently now; false: they may
};

// What one snapshot, or the active layer, has lost.
struct Loss {
  uint64_t layer = 0;
  std::string snapshot;  // empty: the active layer
  uint64_t gone = 0;     // bytes that are certainly lost, also those that are not listed
  uint64_t doubtful = 0;
  std::vector<LostRange> ranges;  // ascending; the first kListedFindings
};

struct CheckOptions {
  bool repair = false;
  FileObserver* observer = nullptr;  // sees every file operation (tests)
};

struct CheckReport {
  std::string path;
  std::string uuid;  // empty if no superblock can be read; then the fields up to `data` are, too
  uint64_t generation = 0;
  uint32_t block_size = 0;  // bytes
  uint64_t size = 0;        // bytes of the active layer
  uint64_t snapshots = 0;
  uint64_t data = 0;    // bytes of blocks that entries name
  uint64_t remote = 0;  // bytes that layers hold, and that are not in the file yet
  bool in_use = false;  // a process has it open for writing: the figures may change
  bool clean = true;    // its last writer closed it
  // Not clean, and the last writer's page cache is gone: only durable bits count.
  bool crashed = false;
  // Bytes that were not durable before a host crash: the next opening for writing drops them, or a
  // repair has dropped them.
  uint64_t dropped = 0;
  std::vector<Finding> findings;
  uint64_t damages = 0;  // not repaired, also those that are not listed
  uint64_t leaks = 0;
  uint64_t repaired = 0;  // damages and leaks that were mended
  std::string lost_path;  // the file with the bytes that a repair could not place; empty: none
  // After a repair the structure may be sound although data is missing.
  std::vector<Loss> losses;
  // Blocks with data that nothing names, in an image that was closed: entries that named them are
  // lost.
  uint64_t unplaced = 0;
  // The newest layer directory could not be read, so an older structure is used.
  bool older_directory = false;
};

// Reads the whole structure. Works on images that cannot be opened, at rest or in use. Writes only
// for a repair, and must be the only writer then (kLocked). Fails if the check could not be
// completed, but not because of what it finds.
Result<CheckReport> check_image(const std::string& path, const CheckOptions& options,
                                const Progress& progress);

}  // namespace pcow
