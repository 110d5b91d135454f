// A sample image for the tests of checks and repairs, and what these tests require of a report.
// Each function ends the program if something is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "engine/check/check.h"
#include "engine/format/bytes.h"
#include "engine/format/entry.h"
#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"

namespace check_sample {

inline constexpr uint32_t kBlock = 16384;
inline constexpr uint64_t kImage = 24 * kBlock + 4096;
// Of the active layer ("") and the snapshots.
using Contents = std::map<std::string, std::vector<char>>;

// An image file and its structures, which are read without opening the image.
struct Sample {
  Bytes bytes;
  Contents contents;
  pcow::Superblock superblock;
  pcow::LayerDirectory directory;

  const pcow::Layer& layer(const std::string& name) const {
    return name.empty() ? directory.active_layer() : *directory.find(name);
  }
  uint64_t entry_place(const std::string& name, uint64_t block) const {
    return layer(name).table_offset + block * 8;
  }
  uint64_t slot() const { return superblock.generation & 1; }
};

// An image with a base, two snapshots, whole and partial blocks, and blocks that are zero over
// data.
Sample make_sample(const TemporaryDirectory& directory);

std::unique_ptr<pcow::Image> open_image(const std::string& path, bool write = false);
void put(pcow::Image* image, uint64_t offset, size_t length, char value);
Contents contents_of(const std::string& path);
inline uint64_t word_at(const Bytes& bytes, uint64_t place) {
  return pcow::get_field<uint64_t>(bytes.data(), place);
}

pcow::CheckReport check(const std::string& path, bool repair = false);
[[noreturn]] void fail(const std::string& what, const pcow::CheckReport& report);
// Whether the report has a finding there that contains these words.
bool has(const pcow::CheckReport& report, const std::string& structure, uint64_t place,
         const std::string& words);
const pcow::Loss* loss_of(const pcow::CheckReport& report, const std::string& snapshot);
// Everything that reads differently after the repair than before the damage is among the losses
// that the repair reports, unless some data had no place, which it reports as well.
void all_losses_are_told(const std::string& what, const pcow::CheckReport& mended,
                         const Contents& before, const Contents& now);

}  // namespace check_sample
