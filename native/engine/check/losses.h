// What a repair could not bring back, told as people see an image: for each snapshot and for the active layer, which bytes read
// otherwise than they did, or may do so. A layer's loss is one of every layer that reads through it there.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "engine/check/check.h"
#include "engine/disk/file.h"
#include "engine/format/geometry.h"
#include "engine/format/layer_directory.h"

namespace pcow {

class Losses {
 public:
  // Sub-blocks of a block of a layer: what it held of them is gone, or nobody can tell whether it is what it was.
  void add_gone(uint64_t layer, uint64_t block, uint16_t sub_blocks) { add(layer, block, sub_blocks, 0); }
  void add_doubtful(uint64_t layer, uint64_t block, uint16_t sub_blocks) { add(layer, block, 0, sub_blocks); }
  // The layer's own table is not what it was, from that block on: nobody can tell what it held there.
  void add_doubtful_from(uint64_t layer, uint64_t block);

  // What the views of the layer directory have lost, once the mended entries are in the file; those that have lost something.
  Result<std::vector<Loss>> of_views(const File& file, const Geometry& geometry, const LayerDirectory& directory) const;

 private:
  struct Piece {
    uint64_t layer;
    uint32_t block;  // in its chunk
    uint16_t gone;
    uint16_t doubtful;
  };

  void add(uint64_t layer, uint64_t block, uint16_t gone, uint16_t doubtful);

  std::map<uint64_t, std::vector<Piece>> pieces_;  // by the chunk
  std::map<uint64_t, uint64_t> doubtful_from_;     // by the layer: a block
};

}  // namespace pcow
