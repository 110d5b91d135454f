// Making a new image file.
#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <ctime>

#include "base.h"
#include "image.h"

namespace pcow {
namespace {

Result<void> check_size(uint64_t size, const Geometry& geometry) {
  if (size % kPageSize)
    return Error(Code::kInvalid, "an image's size is a multiple of 4096 bytes; " + std::to_string(size) +
                                     " is not: take " + std::to_string(size / kPageSize * kPageSize) + " or " +
                                     std::to_string(round_up<uint64_t>(size, kPageSize)));
  if (size < kMinImageSize)
    return Error(Code::kInvalid,
                 "an image has at least " + std::to_string(kMinImageSize) + " bytes, not " + std::to_string(size));
  if (size > geometry.max_image_size())
    return Error(Code::kTooLarge, "an image with blocks of " + std::to_string(geometry.block_size()) +
                                      " bytes has at most " + std::to_string(geometry.max_image_size()) +
                                      " bytes, not " + std::to_string(size));
  return {};
}

// The first two blocks' worth of structure: superblocks, then the directory, then the (empty) table of the active layer.
Result<void> write_structures(File& file, const Geometry& geometry, uint64_t size,
                              const std::optional<BaseReference>& base) {
  const uint64_t directory_offset = geometry.superblock_blocks() << geometry.block_shift();
  Directory directory;
  Layer layer;
  layer.id = directory.next_id++;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  layer.time_ns = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
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
  // Both slots, so that neither is ever read as garbage.
  PCOW_TRY(write_superblock(file, superblock));
  superblock.generation++;
  PCOW_TRY(write_superblock(file, superblock));
  return file.sync();
}

// A file that another process has open for writing is never replaced.
Result<void> check_replaceable(const std::string& path) {
  auto existing = File::open(path, false, nullptr);
  if (!existing) return existing.error().code == Code::kNotFound ? Result<void>() : Result<void>(existing.error());
  if ((*existing)->is_locked_by_other())
    return Error(Code::kLocked, path + " is open for writing by another process; it is not replaced");
  return {};
}

Result<void> sync_directory(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return system_error(errno, "cannot open " + directory);
  const int err = fsync(descriptor) < 0 ? errno : 0;
  close(descriptor);
  if (err) return system_error(err, "cannot sync " + directory);
  return {};
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
      return Error(Code::kInvalid, options.base.path + " has blocks of " + std::to_string(found->block_size) +
                                       " bytes: an image and its base have the same block size");
    block_size = found->block_size;
    if (!size) size = found->size;
    if (size < found->size)
      return Error(Code::kInvalid, "an image cannot be smaller than its base: " + options.base.path + " has " +
                                       std::to_string(found->size) + " bytes");
    base = std::move(found->reference);
  }
  if (!block_size) block_size = kDefaultBlockSize;
  if (!std::has_single_bit(block_size) || block_size < (1u << kMinBlockShift) || block_size > (1u << kMaxBlockShift))
    return Error(Code::kInvalid,
                 "a block size is a power of two from 4096 to 2097152 bytes, not " + std::to_string(block_size));
  const Geometry geometry(static_cast<uint32_t>(std::countr_zero(block_size)));
  PCOW_TRY(check_size(size, geometry));
  if (access(path.c_str(), F_OK) == 0) {
    if (!options.force) return Error(Code::kExists, path + " exists already");
    PCOW_TRY(check_replaceable(path));
  }

  // Under another name first (a leading dot: no image of a mount), so that nobody ever sees half an image. src/drafts.ts
  // removes what is left of it where this process is killed.
  const size_t name_at = path.rfind('/') == std::string::npos ? 0 : path.rfind('/') + 1;
  const std::string draft =
      path.substr(0, name_at) + "." + path.substr(name_at, 200) + "." + std::to_string(getpid()) + ".pcow-draft";
  auto file = File::create(draft, nullptr);
  if (!file) return Error(file.error().code, file.error().err, "cannot create " + path + ": " + file.error().message);
  auto outcome = write_structures(**file, geometry, size, base);
  if (outcome) {
    // link(2) never replaces; rename(2) does.
    const int failed = options.force ? rename(draft.c_str(), path.c_str()) : link(draft.c_str(), path.c_str());
    if (failed) outcome = system_error(errno, "cannot create " + path);
  }
  if (!outcome || !options.force) unlink(draft.c_str());
  if (!outcome) return outcome;
  return sync_directory(path);
}

}  // namespace pcow
