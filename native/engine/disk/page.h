#pragma once

#include <cstdint>

namespace pcow {

// Bytes of a memory page: the unit of the page cache and of the tables of entries.
inline constexpr uint32_t kPageSize = 4096;

}  // namespace pcow
