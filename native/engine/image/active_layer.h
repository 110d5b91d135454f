// The active layer of an open image: reading through it, writing, discarding, and what page faults
// need.
//
// It has no state of its own. The caller holds the gate shared. A change of an entry that only one
// thread may make at a time is made under the chunk's lock (own_blocks.h says why).
#pragma once

#include "engine/image/chunk_locks.h"
#include "engine/image/fault_plan.h"
#include "engine/image/layers.h"
#include "engine/image/own_blocks.h"

namespace pcow {

class ActiveLayer {
 public:
  ActiveLayer(const ImageFile& image, ChunkLocks& chunk_locks, const Layers& layers,
              OwnBlocks& own_blocks, const std::unique_ptr<Space>& space)
      : image_(image),
        chunk_locks_(chunk_locks),
        layers_(layers),
        own_blocks_(own_blocks),
        space_(space) {}

  // Reads the active layer (`view` null) or a frozen one. Returns the bytes read: fewer than asked
  // for only at the end.
  Result<size_t> read(const View* view, uint64_t offset, void* buffer, size_t length) const;
  Result<void> write(uint64_t offset, const void* buffer, size_t length);
  Result<void> discard(uint64_t offset, uint64_t length);

  // The extents that a monitor maps (image.h).
  Extent held_extent(uint64_t offset) const;
  Result<Extent> mappable_extent(uint64_t offset) const;  // … with disk space behind it
  // File offset of the layer's own byte; 0: it holds none there.
  uint64_t own_offset(uint64_t offset) const;
  Result<Extent> make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work);
  Result<void> allocate_ahead(uint64_t offset, uint64_t length);
  Result<void> complete_chunk(uint64_t offset, FaultWork* work);
  uint64_t pieces_when_complete(uint64_t offset) const;
  // Copies everything that the block reads as, with this entry, to an offset of the file. `fresh`:
  // there are zeros.
  Result<void> copy_content(uint64_t block, const Entry& entry, uint64_t to, bool fresh,
                            FaultWork* work) const;

 private:
  Result<size_t> read_once(const View* view, uint64_t offset, void* buffer, size_t length,
                           bool* moved) const;
  Result<void> fill(uint64_t block, uint64_t block_offset, const Entry& before, bool own,
                    uint32_t at, uint32_t end, const char* bytes) const;
  Result<void> discard_sub_blocks(uint64_t block, uint32_t from, uint32_t to, uint16_t lower) const;

  struct Made {
    uint64_t from;  // bytes, in the image
    uint64_t to;
  };
  Result<Entry> complete_block(uint64_t block, const Entry& before, FaultWork* work);
  Result<void> copy_below(uint64_t block, uint64_t block_offset, uint16_t mask) const;
  Result<Made> copy_sub_block(uint64_t block, const FaultScene& scene, FaultWork* work);
  Result<Made> complete(uint64_t block, const FaultScene& scene, uint64_t ahead, FaultWork* work);
  Result<Made> expand(uint64_t block, uint64_t ahead, FaultWork* work);

  const ImageFile& image_;
  ChunkLocks& chunk_locks_;
  const Layers& layers_;
  OwnBlocks& own_blocks_;
  const std::unique_ptr<Space>& space_;
};

}  // namespace pcow
