#include "engine/format/remote_source.h"

#include <algorithm>
#include <cstring>

#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"

namespace pcow {
namespace {

constexpr uint8_t kSourceMagic[8] = {'P', 'C', 'O', 'W', 'S', 'R', 'C', 0};

enum : size_t { kSourceMagicAt = 0, kSourceChecksumAt = 8, kContentLengthAt = 16 };

}  // namespace

std::vector<uint8_t> encode_source(const std::vector<uint8_t>& content) {
  std::vector<uint8_t> bytes(kSourceHeaderLength + content.size());
  memcpy(bytes.data() + kSourceMagicAt, kSourceMagic, sizeof kSourceMagic);
  put_field(bytes.data(), kContentLengthAt, uint64_t{content.size()});
  std::copy(content.begin(), content.end(), bytes.begin() + kSourceHeaderLength);
  put_field(bytes.data(), kSourceChecksumAt, crc32c(bytes.data(), bytes.size()));
  return bytes;
}

Result<std::vector<uint8_t>> read_source(const File& file, const Superblock& superblock) {
  std::vector<uint8_t> bytes(superblock.source_length);
  PCOW_TRY(file.read_all(superblock.source_offset, bytes.data(), bytes.size()));
  const auto checksum = get_field<uint32_t>(bytes.data(), kSourceChecksumAt);
  put_field(bytes.data(), kSourceChecksumAt, uint32_t{0});
  if (memcmp(bytes.data() + kSourceMagicAt, kSourceMagic, sizeof kSourceMagic) != 0 ||
      get_field<uint64_t>(bytes.data(), kContentLengthAt) != bytes.size() - kSourceHeaderLength ||
      crc32c(bytes.data(), bytes.size()) != checksum)
    return Error(Code::kCorrupt, file.path() + ": the source of its remote bytes is damaged");
  bytes.erase(bytes.begin(), bytes.begin() + kSourceHeaderLength);
  return bytes;
}

}  // namespace pcow
