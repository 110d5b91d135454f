// The layer directory: the layers of an image (docs/format.md, "Layer directory"). Every change
// writes a new one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/format/geometry.h"
#include "engine/format/superblock.h"

namespace pcow {

struct Layer {
  uint64_t id = 0;
  // Id, always smaller than `id`; 0: a root, which stands on the image's base, if any.
  uint64_t parent = 0;
  int64_t time_ns = 0;        // when it was frozen (or made, for the active layer), since the epoch
  uint64_t size = 0;          // bytes of the flat file
  uint64_t table_offset = 0;  // bytes
  uint64_t table_length = 0;  // bytes, whole blocks
  bool hidden = false;        // has no name, but its children still need it
  bool automatic = false;     // made by Pcow itself, for a clone
  uint64_t identity = 0;      // of the content, random; 0: none was recorded, see identity_of()
  // The first block of its checksums, which are as long as the table; 0: none.
  uint32_t checksums = 0;
  std::string name;  // empty: the active layer, or a hidden one
};

struct LayerDirectory {
  uint64_t next_id = 1;
  uint64_t active = 0;        // id
  std::vector<Layer> layers;  // ascending ids

  const Layer* find(uint64_t id) const;
  Layer* find(uint64_t id);
  const Layer* find(const std::string& name) const;
  const Layer& active_layer() const { return *find(active); }
  uint64_t count_children(uint64_t id) const;
  // Hidden, with at most one child: the layer is being merged away, and blocks that it names may
  // already belong to its child.
  bool is_spent(const Layer& layer) const { return layer.hidden && count_children(layer.id) <= 1; }
  // The read-only compatible features that the layer directory needs.
  uint64_t features() const;
  void erase(uint64_t id);

  std::vector<uint8_t> encode(const Uuid& image) const;
  // Checks everything that can be checked without reading tables: that ranges are inside the file
  // and do not overlap, that parents come before children, names, and counts.
  static Result<LayerDirectory> decode(const std::vector<uint8_t>& bytes,
                                       const Superblock& superblock, uint64_t file_size,
                                       const std::string& where);
};

inline constexpr size_t kDirectoryChecksumOffset = 8;  // in the encoded layer directory

// The layer directory that the superblock names: its bytes in the file, or decoded.
Result<std::vector<uint8_t>> read_layer_directory_bytes(const File& file,
                                                        const Superblock& superblock);
Result<LayerDirectory> read_layer_directory(const File& file, const Superblock& superblock);

// The identity of a frozen layer's content, equal in all images that the layer is sent to.
uint64_t identity_of(const Layer& layer, const Uuid& image);
uint64_t random_identity();

// kInvalid, with a sentence, if `name` cannot be a snapshot's name.
Result<void> check_snapshot_name(const std::string& name);

}  // namespace pcow
