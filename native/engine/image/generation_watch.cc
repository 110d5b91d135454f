#include "engine/image/generation_watch.h"

#include <algorithm>
#include <atomic>

#include "engine/format/superblock.h"

namespace pcow {

Result<std::shared_ptr<GenerationWatch>> GenerationWatch::start(File& file) {
  auto mapping = file.map(0, 2 * kPageSize, false);
  if (!mapping) return mapping.error();
  return std::shared_ptr<GenerationWatch>(new GenerationWatch(std::move(*mapping)));
}

uint64_t GenerationWatch::now() const {
  uint64_t* words = mapping_->words();
  const auto load = [&](size_t slot) {
    return std::atomic_ref<uint64_t>(words[(slot * kPageSize + kGenerationOffset) / 8])
        .load(std::memory_order_acquire);
  };
  return std::max(load(0), load(1));
}

}  // namespace pcow
