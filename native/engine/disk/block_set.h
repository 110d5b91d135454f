// A set of blocks of a file, as bits. Stretches without members take no memory, so a huge sparse
// file costs nothing.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace pcow {

class BlockSet {
 public:
  bool contains(uint64_t block) const { return word(block / 64) >> (block % 64) & 1; }
  void set(uint64_t first, uint64_t count, bool member);
  // The first block from `from` on that is (or is not) in the set; `end` if there is none before
  // it.
  uint64_t next(bool member, uint64_t from, uint64_t end) const;
  uint64_t size() const { return size_; }  // members
  // The number after the last block in the set; 0 if the set is empty.
  uint64_t end() const;

 private:
  static constexpr uint64_t kLeafWords = 4096;
  using Leaf = std::array<uint64_t, kLeafWords>;

  uint64_t word(uint64_t at) const {
    const uint64_t leaf = at / kLeafWords;
    return leaf < leaves_.size() && leaves_[leaf] ? (*leaves_[leaf])[at % kLeafWords] : 0;
  }

  std::vector<std::unique_ptr<Leaf>> leaves_;
  uint64_t size_ = 0;
};

}  // namespace pcow
