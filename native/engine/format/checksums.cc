#include "engine/format/checksums.h"

#include <algorithm>
#include <cstring>

#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"

namespace pcow {
namespace {

// Offsets of the fields, as in docs/format.md.
enum : size_t {
  kPageChecksumAt = 0,
  kLayerAt = 8,
  kChunkAt = 16,
  kCoveredAt = 1024,
  kSumsAt = 2048,
};

constexpr uint64_t kLargestRead = uint64_t{1} << 20;  // bytes

uint32_t checksum_of(const Geometry& geometry, const char* block, uint16_t mask) {
  if (mask == geometry.full_mask()) return crc32c(block, geometry.block_size());
  uint32_t sum = 0;
  for (uint32_t number = 0; number < geometry.sub_blocks(); number++)
    if (mask >> number & 1)
      sum = crc32c(block + (size_t{number} << geometry.sub_block_shift()),
                   geometry.sub_block_size(), sum);
  return sum;
}

Result<void> read_blocks(const File& file, const Geometry& geometry, uint32_t first, size_t count,
                         std::vector<char>* bytes) {
  bytes->resize(count << geometry.block_shift());
  return file.read_all(uint64_t{first} << geometry.block_shift(), bytes->data(), bytes->size());
}

}  // namespace

std::array<uint8_t, kPageSize> ChecksumPage::encode(uint64_t layer, uint64_t chunk) const {
  std::array<uint8_t, kPageSize> page{};
  uint8_t* bytes = page.data();
  put_field(bytes, kLayerAt, layer);
  put_field(bytes, kChunkAt, chunk);
  for (size_t i = 0; i < kBlocksPerChunk; i++) {
    put_field(bytes, kCoveredAt + i * sizeof covered[0], covered[i]);
    put_field(bytes, kSumsAt + i * sizeof sums[0], sums[i]);
  }
  put_field(bytes, kPageChecksumAt, crc32c(bytes, page.size()));
  return page;
}

Result<ChecksumPage> ChecksumPage::decode(const uint8_t* bytes, uint64_t layer, uint64_t chunk,
                                          const std::string& where) {
  ChecksumPage page;
  if (bytes[0] == 0 && memcmp(bytes, bytes + 1, kPageSize - 1) == 0) return page;
  uint8_t copy[kPageSize];
  memcpy(copy, bytes, sizeof copy);
  put_field(copy, kPageChecksumAt, uint32_t{0});
  if (crc32c(copy, sizeof copy) != get_field<uint32_t>(bytes, kPageChecksumAt) ||
      get_field<uint64_t>(bytes, kLayerAt) != layer ||
      get_field<uint64_t>(bytes, kChunkAt) != chunk)
    return Error(Code::kCorrupt, where + ": a page of checksums is damaged");
  for (size_t i = 0; i < kBlocksPerChunk; i++) {
    page.covered[i] = get_field<uint16_t>(bytes, kCoveredAt + i * sizeof covered[0]);
    page.sums[i] = get_field<uint32_t>(bytes, kSumsAt + i * sizeof sums[0]);
  }
  return page;
}

void checksum_blocks(const File& file, const Geometry& geometry,
                     const std::vector<HeldBlock>& blocks,
                     const std::function<void(const HeldBlock&, Result<uint32_t>)>& use) {
  const size_t most = std::max<uint64_t>(1, kLargestRead >> geometry.block_shift());
  std::vector<char> bytes;
  for (size_t first = 0; first < blocks.size();) {
    size_t end = first + 1;
    while (end < blocks.size() && end - first < most &&
           blocks[end].index == blocks[end - 1].index + 1)
      end++;
    const bool together =
        read_blocks(file, geometry, blocks[first].index, end - first, &bytes).ok();
    for (size_t i = first; i < end; i++) {
      Result<void> alone;
      if (!together) alone = read_blocks(file, geometry, blocks[i].index, 1, &bytes);
      const char* at = bytes.data() + (together ? (i - first) << geometry.block_shift() : 0);
      use(blocks[i],
          alone ? Result<uint32_t>(checksum_of(geometry, at, blocks[i].mask)) : alone.error());
    }
    first = end;
  }
}

Checksums::Checksums(std::shared_ptr<File> file, const Geometry& geometry, const Layer& layer)
    : file_(std::move(file)),
      geometry_(geometry),
      first_block_(layer.checksums),
      layer_(layer.id),
      name_(layer.name.empty() ? "layer " + std::to_string(layer.id) : "snapshot " + layer.name) {}

Result<std::shared_ptr<const ChecksumPage>> Checksums::page(uint64_t chunk) const {
  {
    const std::lock_guard lock(mutex_);
    if (gone_.contains(chunk)) return std::make_shared<const ChecksumPage>();
    if (last_chunk_ == chunk) return last_page_;
  }
  uint8_t bytes[kPageSize];
  PCOW_TRY(file_->read_all((first_block_ << geometry_.block_shift()) + chunk * kPageSize, bytes,
                           sizeof bytes));
  auto decoded = ChecksumPage::decode(bytes, layer_, chunk, file_->path());
  if (!decoded) return decoded.error();
  auto page = std::make_shared<const ChecksumPage>(*decoded);
  const std::lock_guard lock(mutex_);
  last_chunk_ = chunk;
  last_page_ = page;
  return page;
}

void Checksums::forget(uint64_t first, uint64_t end) const {
  const std::lock_guard lock(mutex_);
  gone_.set(first, end - first, true);
}

Result<void> Checksums::verify(uint64_t block, uint32_t index) const {
  {
    const std::lock_guard lock(mutex_);
    if (good_.contains(block)) return {};
  }
  const size_t i = block % kBlocksPerChunk;
  if (auto found = page(block / kBlocksPerChunk)) {
    const uint16_t covered = (*found)->covered[i];
    Result<void> outcome;
    if (covered)
      checksum_blocks(*file_, geometry_, {{block, index, covered}},
                      [&](const HeldBlock&, Result<uint32_t> sum) {
                        if (!sum) {
                          outcome = sum.error();
                        } else if (*sum != (*found)->sums[i]) {
                          const uint64_t offset = block << geometry_.block_shift();
                          outcome =
                              Error(Code::kCorrupt,
                                    file_->path() + ": bytes " + std::to_string(offset) + " to " +
                                        std::to_string(offset + geometry_.block_size() - 1) +
                                        " of " + name_ +
                                        " are damaged: they do not match their checksum; pcow "
                                        "scrub lists all damage");
                        }
                      });
    PCOW_TRY(outcome);
  }
  const std::lock_guard lock(mutex_);
  good_.set(block, 1, true);
  return {};
}

}  // namespace pcow
