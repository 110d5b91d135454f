// Looking an image over without opening it, and mending what can be mended without guessing (docs/check.md).
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
  kLeak,    // bytes where nothing should be
  kDamage,  // something that the format forbids
};

// What was found, and where. Offsets and lengths are bytes; what does not apply is 0, or empty.
struct Finding {
  Severity severity = Severity::kDamage;
  std::string
      structure;  // "file", "superblock", "directory", "table", "entry", "block", "checksums", "base", "free space"
  std::string message;       // a sentence, without the image's name and a full stop
  uint64_t file_offset = 0;  // in the image file
  uint64_t layer = 0;        // id
  std::string snapshot;      // that layer's name
  uint64_t offset = 0;       // what it concerns of the flat file
  uint64_t length = 0;       // 0: nothing in particular
  bool repaired = false;
};

// Damage of `blocks` blocks of a layer from `block` on.
Finding damage_in(const Layer& layer, const Geometry& geometry, const char* structure, const std::string& message,
                  uint64_t file_offset, uint64_t block, uint64_t blocks);

inline constexpr size_t kListedFindings = 1000;  // of each severity; more are only counted

// Bytes of a flat file that a repair could not bring back.
struct LostRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool certain = false;  // they read otherwise than they did; false: nobody can tell whether they do
};

// What one snapshot, or the active layer, has lost.
struct Loss {
  uint64_t layer = 0;
  std::string snapshot;  // empty: the active layer
  uint64_t gone = 0;     // bytes that are certain, listed or not
  uint64_t doubtful = 0;
  std::vector<LostRange> ranges;  // ascending; the first kListedFindings
};

struct CheckOptions {
  bool repair = false;
  FileObserver* observer = nullptr;  // sees every file operation (tests)
};

struct CheckReport {
  std::string path;
  std::string uuid;  // empty where no superblock can be read; so are the figures below, up to `data`
  uint64_t generation = 0;
  uint32_t block_size = 0;  // bytes
  uint64_t size = 0;        // bytes of the active layer
  uint64_t snapshots = 0;
  uint64_t data = 0;     // bytes of blocks that entries name
  bool in_use = false;   // somebody has it open for writing: the figures are of a moving image
  bool clean = true;     // its last writer has closed it
  bool crashed = false;  // not clean, and the last writer's page cache is gone: only durable bits count
  uint64_t dropped = 0;  // bytes that the next opening for writing drops for that reason, or that a repair has dropped
  std::vector<Finding> findings;
  uint64_t damages = 0;  // that are there at the end, listed or not
  uint64_t leaks = 0;
  uint64_t repaired = 0;  // that were mended
  std::string lost_path;  // where a repair has put what it could not place; empty: there was nothing
  // After a repair: the structure may be sound, and data missing all the same.
  std::vector<Loss> losses;
  uint64_t unplaced = 0;  // blocks of data that nothing named, in an image that was closed: some entry has lost them
  bool older_directory =
      false;  // the newest layer directory could not be read: what the structure was before it counts
};

// Reads all of the structure. Works on images that cannot be opened, at rest or in use; writes only to repair, and then
// wants to be the one writer (kLocked). Fails where the check could not be completed, not for what it finds.
Result<CheckReport> check_image(const std::string& path, const CheckOptions& options, const Progress& progress);

}  // namespace pcow
