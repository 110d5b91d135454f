// What gives space back, where the disk is full.
#pragma once

#include "engine/image/durability.h"

namespace pcow {

class FullDisk {
 public:
  FullDisk(const ImageFile& image, const std::unique_ptr<Space>& space, const Superblocks& superblocks,
           Durability& durability)
      : image_(image), space_(space), superblocks_(superblocks), durability_(durability) {}

  // Whether the disk has too little space, so that giving some back helps. A sync that failed never counts, whatever errno the disk
  // has given for it: what was to be synced is lost, and no space brings it back.
  bool is_full(const Error& why) const {
    return (why.code == Code::kNoSpace || why.code == Code::kTooLarge) && !image_.file->sync_failure();
  }

  // Does what gives space back, and does it again where the disk is full and `may_repeat` says so. Without the gate.
  template <typename Do, typename MayRepeat>
  auto giving_back(const Do& what, const MayRepeat& may_repeat) {
    const auto is_over = [&](const auto& outcome) { return outcome || !is_full(outcome.error()) || !may_repeat(); };
    auto outcome = what();
    if (is_over(outcome)) return outcome;
    // What was released before may only be waiting for a sync; two of them give its space back.
    if (space_->has_pending() && durability_.sync() && durability_.sync()) outcome = what();
    if (is_over(outcome) || !space_->spend_reserve()) return outcome;
    outcome = what();
    space_->end_spending();
    return outcome;
  }

  // A change of structure: with `structure` held. One that has happened is not done again, whatever failed afterwards.
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
