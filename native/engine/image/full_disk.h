// Operations that give space back, on a full disk.
#pragma once

#include "engine/image/durability.h"

namespace pcow {

class FullDisk {
 public:
  FullDisk(const ImageFile& image, const std::unique_ptr<Space>& space,
           const Superblocks& superblocks, Durability& durability)
      : image_(image), space_(space), superblocks_(superblocks), durability_(durability) {}

  // Whether the disk has too little space, so that giving some back helps. After a failed sync the
  // answer is no, whatever errno the disk gave: the data is lost, and no free space brings it back.
  bool is_full(const Error& why) const {
    return (why.code == Code::kNoSpace || why.code == Code::kTooLarge) &&
           !image_.file->sync_failure();
  }

  // Runs an operation that gives space back, and runs it again if the disk is full and `may_repeat`
  // allows it. The caller does not hold the gate.
  template <typename Do, typename MayRepeat>
  auto giving_back(const Do& what, const MayRepeat& may_repeat) {
    const auto is_over = [&](const auto& outcome) {
      return outcome || !is_full(outcome.error()) || !may_repeat();
    };
    auto outcome = what();
    if (is_over(outcome)) return outcome;
    // Blocks that were released earlier may only be waiting for a sync: two syncs give their space
    // back.
    if (space_->has_pending() && durability_.sync() && durability_.sync()) outcome = what();
    if (is_over(outcome) || !space_->spend_reserve()) return outcome;
    outcome = what();
    space_->end_spending();
    return outcome;
  }

  // The same for a change of structure. The caller holds `structure`. A change that has happened is
  // not repeated, even if something failed afterwards.
  template <typename Do>
  auto giving_back_by_change(const Do& what) {
    return giving_back(what, [&, before = superblocks_.current().directory_offset] {
      return superblocks_.current().directory_offset == before;
    });
  }

 private:
  const ImageFile& image_;
  const std::unique_ptr<Space>& space_;
  const Superblocks& superblocks_;
  Durability& durability_;
};

}  // namespace pcow
