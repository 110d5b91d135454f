// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF; RFC
// 3720 appendix B.4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace pcow {

// Continues from `seed`, the result for the bytes before (0 at the start).
uint32_t crc32c(const void* data, size_t length, uint32_t seed = 0);

// For a structure of the format with a wrong checksum (of the whole, with the checksum field as
// zeros): if flipping exactly one bit explains it, returns the structure with that bit corrected.
// Within the lengths in use at most one bit can. Other damage is mistaken for such a bit about once
// in 100,000 times per page.
std::optional<std::vector<uint8_t>> mend_one_bit(std::vector<uint8_t> structure,
                                                 size_t checksum_at);

}  // namespace pcow
