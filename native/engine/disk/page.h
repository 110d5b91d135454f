#pragma once

#include <cstdint>

namespace pcow {

// Bytes of a page of memory, which the page cache and tables of entries are made of.
inline constexpr uint32_t kPageSize = 4096;

}  // namespace pcow
