// Watches a file that another process may write: the generation of its superblock, as its writer
// last stored it.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/disk/file.h"

namespace pcow {

class GenerationWatch {
 public:
  static Result<std::shared_ptr<GenerationWatch>> start(File& file);
  uint64_t now() const;
  bool is_torn() const { return mapping_->is_torn(); }

 private:
  explicit GenerationWatch(std::unique_ptr<Mapping> mapping) : mapping_(std::move(mapping)) {}
  std::unique_ptr<Mapping> mapping_;
};

// A watched file, and its generation when it was last loaded.
struct Watch {
  std::shared_ptr<GenerationWatch> generation;
  uint64_t seen;

  bool has_changed() const { return generation->now() != seen; }
};

}  // namespace pcow
