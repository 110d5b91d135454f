// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF; RFC 3720 appendix B.4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace pcow {

// Continues from `seed`, the result for the bytes before (0 at the start).
uint32_t crc32c(const void* data, size_t length, uint32_t seed = 0);

// Of a structure of the format whose checksum (of the whole, with the field itself as zeros) is wrong: the structure with
// that one bit turned back whose being flipped explains it, where there is such a bit. Within the lengths in use at most one
// can, and what is damaged otherwise passes for it once in some 100,000 times a page.
std::optional<std::vector<uint8_t>> mend_one_bit(std::vector<uint8_t> structure, size_t checksum_at);

}  // namespace pcow
