// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF; RFC 3720 appendix B.4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pcow {

// Continues from `seed`, the result for the bytes before (0 at the start).
uint32_t crc32c(const void* data, size_t length, uint32_t seed = 0);

}  // namespace pcow
