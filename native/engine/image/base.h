// Bases: frozen layers in other image files (docs/format.md, "Base reference").
#pragma once

#include <set>
#include <string>
#include <utility>

#include "engine/format/directory.h"
#include "engine/format/superblock.h"
#include "engine/image/image.h"

namespace pcow {

struct FoundBase {
  BaseReference reference;  // with the path as it is to be stored in the image
  uint32_t block_size = 0;  // bytes
  uint64_t size = 0;        // bytes of the base layer
};

// Looks up what a new image at `image_path` is to stand on. The stored path is relative to the image's directory where
// the base lies in or below it, or where the caller's path is relative; otherwise absolute. Waits until the layer is durable.
Result<FoundBase> find_base(const std::string& image_path, const BaseSpec& spec);

// What a file of a chain says of itself, read so that a writer at work in another process cannot mislead.
struct LoadedStructure {
  Superblock superblock;
  Directory directory;
  bool crashed = false;  // unclean, and the last writer's page cache is gone: only durable bits count
  bool names_dropped = false;
  uint64_t seen = 0;  // the generation that a watch of the file shows
};
class GenerationWatch;
Result<LoadedStructure> load_structure(const File& file, const GenerationWatch* watch);

}  // namespace pcow
