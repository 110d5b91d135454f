// What an image file says of itself: its superblock and its layer directory.
#pragma once

#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"

namespace pcow {

class GenerationWatch;

struct LoadedStructure {
  Superblock superblock;
  LayerDirectory directory;
  bool crashed = false;        // unclean, and the last writer's page cache is gone: only durable bits count
  bool names_dropped = false;  // snapshots that were not yet durable then are hidden
  uint64_t seen = 0;           // the generation that a watch of the file shows
};
// Read so that a writer at work in another process cannot mislead, with a watch of the file. Null: nobody writes it.
Result<LoadedStructure> load_structure(const File& file, const GenerationWatch* watch);

}  // namespace pcow
