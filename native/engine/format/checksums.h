// Checksums of a frozen layer: of what its blocks held when the checksums were made
// (docs/format.md, "Checksums").
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/disk/block_set.h"
#include "engine/disk/file.h"
#include "engine/format/geometry.h"
#include "engine/format/layer_directory.h"

namespace pcow {

// The checksums of a chunk: one page of the file.
struct ChecksumPage {
  std::array<uint16_t, kBlocksPerChunk> covered{};  // sub-blocks
  // Of the covered sub-blocks of a block, one after the other.
  std::array<uint32_t, kBlocksPerChunk> sums{};

  std::array<uint8_t, kPageSize> encode(uint64_t layer, uint64_t chunk) const;
  // kCorrupt if the page is neither empty nor of this chunk of this layer.
  static Result<ChecksumPage> decode(const uint8_t* bytes, uint64_t layer, uint64_t chunk,
                                     const std::string& where);
};

// Sub-blocks of a layer's block, in a block of the file.
struct HeldBlock {
  uint64_t block;  // of the layer
  uint32_t index;
  uint16_t mask;
};

// Calls `use` with the checksum of each, or with the reason why its bytes cannot be read.
// Neighbours are read together.
void checksum_blocks(const File& file, const Geometry& geometry,
                     const std::vector<HeldBlock>& blocks,
                     const std::function<void(const HeldBlock&, Result<uint32_t>)>& use);

// The checksums of one layer. The range that holds them does not change. Any thread may use them.
class Checksums {
 public:
  Checksums(std::shared_ptr<File> file, const Geometry& geometry, const Layer& layer);

  uint64_t first_block() const { return first_block_; }
  Result<std::shared_ptr<const ChecksumPage>> page(uint64_t chunk) const;
  // kCorrupt if the layer's block, at `index` of the file, does not match its checksum. The block
  // is read when it is first asked for. Blocks that are not covered, or whose checksum page is
  // itself damaged, are not judged.
  Result<void> verify(uint64_t block, uint32_t index) const;
  // From now on the pages of chunks [first, end) are holes: nothing there is covered.
  void forget(uint64_t first, uint64_t end) const;

 private:
  const std::shared_ptr<File> file_;
  const Geometry geometry_;
  const uint64_t first_block_;  // of the range
  const uint64_t layer_;        // id
  const std::string name_;      // of the layer, for messages
  mutable std::mutex mutex_;    // guards the rest
  mutable BlockSet good_;       // blocks that need not be verified again
  mutable BlockSet gone_;       // chunks whose page was removed
  mutable uint64_t last_chunk_ = ~uint64_t{0};
  mutable std::shared_ptr<const ChecksumPage> last_page_;
};

}  // namespace pcow
