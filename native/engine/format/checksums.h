// Checksums of a frozen layer: what its blocks held when they were made (docs/format.md, "Checksums").
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

// Those of a chunk: one page of the file.
struct ChecksumPage {
  std::array<uint16_t, kBlocksPerChunk> covered{};  // sub-blocks
  std::array<uint32_t, kBlocksPerChunk> sums{};     // of the covered sub-blocks of a block, one after the other

  std::array<uint8_t, kPageSize> encode(uint64_t layer, uint64_t chunk) const;
  // kCorrupt where the page is neither empty nor of this chunk of this layer.
  static Result<ChecksumPage> decode(const uint8_t* bytes, uint64_t layer, uint64_t chunk, const std::string& where);
};

// Sub-blocks of a block, in a block of a file.
struct HeldBlock {
  uint64_t block;  // of the layer
  uint32_t index;
  uint16_t mask;
};

// The checksum of each, or why its bytes cannot be read. Neighbours are read together.
void checksum_blocks(const File& file, const Geometry& geometry, const std::vector<HeldBlock>& blocks,
                     const std::function<void(const HeldBlock&, Result<uint32_t>)>& use);

// The checksums of one layer; the range that holds them does not change. Any thread may call.
class Checksums {
 public:
  Checksums(std::shared_ptr<File> file, const Geometry& geometry, const Layer& layer);

  uint64_t first_block() const { return first_block_; }
  Result<std::shared_ptr<const ChecksumPage>> page(uint64_t chunk) const;
  // kCorrupt where the layer's block, which is at `index` of the file, does not have its checksum. A block is read for this
  // when it is first asked for. What is not covered, or by a page that is damaged itself, is not judged.
  Result<void> verify(uint64_t block, uint32_t index) const;
  // The pages of chunks [first, end) are holes from now on: nothing there is covered any more.
  void forget(uint64_t first, uint64_t end) const;

 private:
  const std::shared_ptr<File> file_;
  const Geometry geometry_;
  const uint64_t first_block_;  // of the range
  const uint64_t layer_;        // id
  const std::string name_;      // of the layer, for people
  mutable std::mutex mutex_;    // guards the rest
  mutable BlockSet good_;       // blocks that need not be looked at any more
  mutable BlockSet gone_;       // chunks that have lost their page
  mutable uint64_t last_chunk_ = ~uint64_t{0};
  mutable std::shared_ptr<const ChecksumPage> last_page_;
};

}  // namespace pcow
