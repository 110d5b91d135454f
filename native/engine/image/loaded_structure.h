// What an image file says about itself: its superblock and its layer directory.
#pragma once

#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"

namespace pcow {

class GenerationWatch;

struct LoadedStructure {
  Superblock superblock;
  LayerDirectory directory;
  // Unclean, and the last writer's page cache is gone: only durable bits count.
  bool crashed = false;
  bool names_dropped = false;  // snapshots that were not durable before the crash are hidden
  uint64_t seen = 0;           // the generation that the file's watch showed
};
// Reads both so that a writer in another process cannot mislead this reader. `watch`: of the file;
// null if no other process writes it.
Result<LoadedStructure> load_structure(const File& file, const GenerationWatch* watch);

}  // namespace pcow
