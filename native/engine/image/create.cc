// Making a new image file.
#include <unistd.h>

#include <bit>

#include "engine/disk/needs.h"
#include "engine/image/bases.h"
#include "engine/image/clock.h"
#include "engine/image/image.h"
#include "engine/image/names.h"

namespace pcow {
namespace {

Result<void> check_size(uint64_t size, const Geometry& geometry) {
  if (size % kPageSize)
    return Error(Code::kInvalid, "an image's size is a multiple of 4096 bytes; " +
                                     std::to_string(size) + " is not: take " +
                                     std::to_string(size / kPageSize * kPageSize) + " or " +
                                     std::to_string(round_up<uint64_t>(size, kPageSize)));
  if (size < kMinImageSize)
    return Error(Code::kInvalid, "an image has at least " + std::to_string(kMinImageSize) +
                                     " bytes, not " + std::to_string(size));
  if (size > geometry.max_image_size())
    return Error(Code::kTooLarge,
                 "an image with blocks of " + std::to_string(geometry.block_size()) +
                     " bytes has at most " + std::to_string(geometry.max_image_size()) +
                     " bytes, not " + std::to_string(size));
  return {};
}

// Writes the structures of an empty image: the superblocks, the layer directory, and the (empty)
// table of the active layer.
Result<void> write_structures(File& file, const Geometry& geometry, uint64_t size,
                              const std::optional<BaseReference>& base) {
  const uint64_t directory_offset = geometry.superblock_blocks() << geometry.block_shift();
  LayerDirectory directory;
  Layer layer;
  layer.id = directory.next_id++;
  layer.time_ns = realtime_ns();
  layer.size = size;
  layer.table_offset = directory_offset + geometry.block_size();
  layer.table_length = geometry.table_length(size);
  directory.active = layer.id;
  directory.layers.push_back(layer);

  Superblock superblock;
  superblock.uuid = random_uuid();
  superblock.block_shift = static_cast<uint32_t>(std::countr_zero(geometry.block_size()));
  superblock.base = base;
  superblock.directory_offset = directory_offset;
  const std::vector<uint8_t> bytes = directory.encode(superblock.uuid);
  superblock.directory_length = bytes.size();

  PCOW_TRY(file.resize(layer.table_offset + layer.table_length));
  PCOW_TRY(file.write(directory_offset, bytes.data(), bytes.size()));
  // Write both slots, so that none of them ever contains garbage.
  PCOW_TRY(write_superblock(file, superblock));
  superblock.generation++;
  PCOW_TRY(write_superblock(file, superblock));
  return file.sync();
}

Result<void> fill_draft(const std::string& draft, const Geometry& geometry, uint64_t size,
                        const std::optional<BaseReference>& base) {
  PCOW_TRY(check_needs(draft));
  auto file = File::open(draft, true, nullptr);
  if (!file) return file.error();
  return write_structures(**file, geometry, size, base);
}

}  // namespace

Result<void> create_image(const std::string& path, const CreateOptions& options) {
  std::optional<BaseReference> base;
  uint64_t size = options.size;
  uint32_t block_size = options.block_size;
  if (options.has_base) {
    auto found = find_base(path, options.base);
    if (!found) return found.error();
    if (block_size && block_size != found->block_size)
      return Error(Code::kInvalid, options.base.path + " has blocks of " +
                                       std::to_string(found->block_size) +
                                       " bytes: an image and its base have the same block size");
    block_size = found->block_size;
    if (!size) size = found->size;
    if (size < found->size)
      return Error(Code::kInvalid,
                   "an image cannot be smaller than its base: " + options.base.path + " has " +
                       std::to_string(found->size) + " bytes");
    base = std::move(found->reference);
  }
  if (!block_size) block_size = kDefaultBlockSize;
  if (!std::has_single_bit(block_size) || block_size < (1u << kMinBlockShift) ||
      block_size > (1u << kMaxBlockShift))
    return Error(Code::kInvalid, "a block size is a power of two from 4096 to 2097152 bytes, not " +
                                     std::to_string(block_size));
  const Geometry geometry(static_cast<uint32_t>(std::countr_zero(block_size)));
  PCOW_TRY(check_size(size, geometry));
  if (options.into) return fill_draft(path, geometry, size, base);
  if (access(path.c_str(), F_OK) == 0) return Error(Code::kExists, path + " exists already");

  // A draft, because no other process must see half an image under its name.
  auto draft = make_draft(path);
  if (!draft) return draft.error();
  auto outcome = fill_draft(draft->path, geometry, size, base);
  if (outcome) outcome = give_name(draft->path, path, false);
  if (!outcome) unlink(draft->path.c_str());
  close(draft->descriptor);
  if (!outcome) return by_name(outcome.error(), draft->path, path);
  return outcome;
}

}  // namespace pcow
