// What a repair could not restore, as users see an image: for each snapshot and for the active
// layer, which bytes read differently now, or may do so. A layer's loss also affects every layer
// that reads through it there.
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
  // Sub-blocks of a layer's block whose content is lost, or may have changed.
  void add_gone(uint64_t layer, uint64_t block, uint16_t sub_blocks) {
    add(layer, block, sub_blocks, 0);
  }
  void add_doubtful(uint64_t layer, uint64_t block, uint16_t sub_blocks) {
    add(layer, block, 0, sub_blocks);
  }
  // From that block on, the layer's table is not as it was: what it held there is unknown.
  void add_doubtful_from(uint64_t layer, uint64_t block);

  // The losses of the layers as they are read, after the mended entries are in the file; only
  // layers that have lost something.
  Result<std::vector<Loss>> of_views(const File& file, const Geometry& geometry,
                                     const LayerDirectory& directory) const;

 private:
  struct Piece {
    uint64_t layer;
    uint32_t block;  // number in its chunk
    uint16_t gone;
    uint16_t doubtful;
  };

  void add(uint64_t layer, uint64_t block, uint16_t gone, uint16_t doubtful);

  std::map<uint64_t, std::vector<Piece>> pieces_;  // by chunk
  std::map<uint64_t, uint64_t> doubtful_from_;     // by layer: a block
};

}  // namespace pcow
