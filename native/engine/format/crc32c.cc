#include "engine/format/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#include "engine/format/bytes.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace pcow {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0);
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

uint32_t portable(const uint8_t* data, size_t length, uint32_t crc) {
  for (size_t i = 0; i < length; i++) crc = (crc >> 8) ^ kTable[(crc ^ data[i]) & 0xff];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t accelerated(const uint8_t* data, size_t length,
                                                       uint32_t crc) {
  uint64_t wide = crc;
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; length; data++, length--) crc = _mm_crc32_u8(crc, *data);
  return crc;
}
#endif

}  // namespace

uint32_t crc32c(const void* data, size_t length, uint32_t seed) {
  const auto* bytes = static_cast<const uint8_t*>(data);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return ~accelerated(bytes, length, ~seed);
#endif
  return ~portable(bytes, length, ~seed);
}

std::optional<std::vector<uint8_t>> mend_one_bit(std::vector<uint8_t> structure,
                                                 size_t checksum_at) {
  const auto stored = get_field<uint32_t>(structure.data(), checksum_at);
  put_field(structure.data(), checksum_at, uint32_t{0});
  const uint32_t computed = crc32c(structure.data(), structure.size());
  const uint32_t difference = stored ^ computed;
  put_field(structure.data(), checksum_at, stored);
  if (std::has_single_bit(difference)) {
    put_field(structure.data(), checksum_at, computed);
    return structure;
  }
  // How a flipped bit changes the checksum: known for the last byte, and for every other byte by
  // continuing with zeros.
  std::array<uint32_t, 8> added;
  for (size_t bit = 0; bit < 8; bit++) added[bit] = kTable[size_t{1} << bit];
  for (size_t at = structure.size(); at-- > 0;) {
    for (size_t bit = 0; bit < 8; bit++) {
      const bool in_checksum = at >= checksum_at && at < checksum_at + sizeof stored;
      if (added[bit] == difference && !in_checksum) {
        structure[at] ^= static_cast<uint8_t>(1u << bit);
        return structure;
      }
      added[bit] = (added[bit] >> 8) ^ kTable[added[bit] & 0xff];
    }
  }
  return std::nullopt;
}

}  // namespace pcow
