// A layer in a reader's hands, which stays the same layer whatever the image's structure becomes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

namespace pcow {

class Chain;

class View {
 public:
  View(uint64_t layer, uint64_t size, bool by_name) : layer_(layer), size_(size), by_name_(by_name) {}
  uint64_t layer() const { return layer_; }
  uint64_t size() const { return size_; }
  bool by_name() const { return by_name_; }  // whoever asked for a name does not read it once it is deleted

 private:
  friend class Layers;  // which makes the chain anew when the image's structure has changed since
  const uint64_t layer_;
  const uint64_t size_;
  const bool by_name_;
  mutable std::mutex mutex_;  // guards the two below
  mutable std::shared_ptr<const Chain> chain_;
  mutable uint64_t epoch_ = 0;
};

}  // namespace pcow
