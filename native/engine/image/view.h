// A layer that a reader holds: it stays the same layer, however the image's structure changes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

namespace pcow {

class Chain;

class View {
 public:
  View(uint64_t layer, uint64_t size, bool by_name)
      : layer_(layer), size_(size), by_name_(by_name) {}
  uint64_t layer() const { return layer_; }
  uint64_t size() const { return size_; }
  bool by_name() const {
    return by_name_;
  }  // a reader that asked for a name cannot read it any more after it is deleted

 private:
  friend class Layers;  // which makes the chain again after the image's structure has changed
  const uint64_t layer_;
  const uint64_t size_;
  const bool by_name_;
  mutable std::mutex mutex_;  // guards the two fields below
  mutable std::shared_ptr<const Chain> chain_;
  mutable uint64_t epoch_ = 0;
};

}  // namespace pcow
