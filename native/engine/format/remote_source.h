// The source of a lazy image: a range of the file that tells where the bytes of remote sub-blocks
// are (docs/format.md, "Source"). The engine does not look at its content.
#pragma once

#include <vector>

#include "engine/format/superblock.h"

namespace pcow {

inline constexpr uint64_t kSourceHeaderLength = 32;
inline constexpr uint64_t kMaxSourceLength = kSourceHeaderLength + (uint64_t{1} << 30);

std::vector<uint8_t> encode_source(const std::vector<uint8_t>& content);
// The content of the source that the superblock names, in whole blocks of the file
// (LayerDirectory::decode() has checked that).
Result<std::vector<uint8_t>> read_source(const File& file, const Superblock& superblock);

}  // namespace pcow
