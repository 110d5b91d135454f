// What fills of remote blocks share (image_fill.cc).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "engine/format/layer_directory.h"
#include "engine/format/table.h"
#include "engine/image/image_file.h"

namespace pcow {

class Filling {
 public:
  [[nodiscard]] std::shared_lock<std::shared_mutex> begin() { return std::shared_lock(filling_); }
  // Waits for all fills: a block that one of them has taken is not in use before its entry is
  // stored, and must not be left behind in an image that is closed.
  [[nodiscard]] std::unique_lock<std::shared_mutex> keep_away() {
    return std::unique_lock(filling_);
  }

  // The table of a frozen layer, mapped for storing.
  Result<std::shared_ptr<Table>> table_of(const ImageFile& image, const Layer& layer) {
    const std::lock_guard lock(mutex_);
    const auto known = tables_.find(layer.id);
    if (known != tables_.end()) return known->second;
    auto mapped =
        Table::map(image.file, layer.table_offset, image.geometry.blocks_for(layer.size), true);
    if (mapped) tables_.emplace(layer.id, *mapped);
    return mapped;
  }
  void forget(uint64_t layer) {
    const std::lock_guard lock(mutex_);
    tables_.erase(layer);
  }

 private:
  std::shared_mutex filling_;
  std::mutex mutex_;                                   // a leaf
  std::map<uint64_t, std::shared_ptr<Table>> tables_;  // guarded by `mutex_`; by the layer's id
};

}  // namespace pcow
