// Which blocks of a lazy image's layer this process has read, through whatever opening: what was not
// read for long is given back first. Monitors read in other processes, and are not seen here.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/format/superblock.h"

namespace pcow {

class Uses {
 public:
  // The same for all openings of this process.
  static std::shared_ptr<Uses> of(const Uuid& image, uint64_t layer, uint64_t blocks);
  explicit Uses(uint64_t blocks) : words_((blocks + 63) / 64) {}

  // Any thread may call these.
  void note(uint64_t block) {
    std::atomic<uint64_t>& word = words_[block / 64];
    const uint64_t bit = uint64_t{1} << (block % 64);
    if (!(word.load(std::memory_order_relaxed) & bit))
      word.fetch_or(bit, std::memory_order_relaxed);
  }
  // Whether one of these blocks was read since the last call about it.
  bool take(uint64_t first, uint64_t count);

 private:
  std::vector<std::atomic<uint64_t>> words_;  // a bit for each block
};

}  // namespace pcow
