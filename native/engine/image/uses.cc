#include "engine/image/uses.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace pcow {

std::shared_ptr<Uses> Uses::of(const Uuid& image, uint64_t layer, uint64_t blocks) {
  static std::mutex mutex;
  static auto& known = *new std::map<std::pair<Uuid, uint64_t>, std::weak_ptr<Uses>>;
  const std::lock_guard lock(mutex);
  std::erase_if(known, [](const auto& item) { return item.second.expired(); });
  std::weak_ptr<Uses>& place = known[{image, layer}];
  auto uses = place.lock();
  if (!uses) place = uses = std::make_shared<Uses>(blocks);
  return uses;
}

bool Uses::take(uint64_t first, uint64_t count) {
  bool used = false;
  const uint64_t end = std::min<uint64_t>(first + count, words_.size() * 64);
  for (uint64_t block = first; block < end; block++) {
    const uint64_t bit = uint64_t{1} << (block % 64);
    used |= (words_[block / 64].fetch_and(~bit, std::memory_order_relaxed) & bit) != 0;
  }
  return used;
}

}  // namespace pcow
