// Changes of an open image's structure: what all of them share.
//
// Order of every such change (docs/format.md, "What a writer does, in which order"):
//   1. the new layer directory (and a new, empty table) is written to free space, and made durable: prepare_…()
//   2. with the gate held exclusively, the superblock's other slot is written: flip(). This is the moment
//   3. fdatasync; only then is the space of the old layer directory, and what the old structure alone used, released
// A crash before the slot is on the disk leaves the old structure untouched.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "engine/image/durability.h"
#include "engine/image/failures.h"
#include "engine/image/layers.h"

namespace pcow {

// A structure that is to be, and as far as it has been written.
struct PreparedStructure : NextLayers {
  uint64_t offset = 0;  // of the encoded layer directory in the file, bytes
  uint64_t length = 0;
  std::optional<uint64_t> sealed;     // the superblock says so from then on
  std::optional<BaseReference> base;  // where `bases` are others
};

class Structure {
 public:
  Structure(const ImageFile& image, Gate& gate, const std::unique_ptr<Space>& space, Superblocks& superblocks,
            Layers& layers, Durability& durability, Failures& failures)
      : image_(image),
        gate_(gate),
        space_(space),
        superblocks_(superblocks),
        layers_(layers),
        durability_(durability),
        failures_(failures) {}

  // The one way into a change from outside: alone, of an image that is open for writing. `work()` runs with `structure` held, and returns
  // a Result; its failure is noted.
  template <typename Work>
  auto change(const Work& work) {
    const auto alone = [&]() -> decltype(work()) {
      const auto holding = lock();
      if (auto possible = check_changeable(); !possible) return possible.error();
      return work();
    };
    return failures_.noted(alone());
  }
  // `structure` itself, for changes in steps, or of two images.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(changing_); }
  [[nodiscard]] static std::scoped_lock<std::mutex, std::mutex> lock_both(Structure& one, Structure& other) {
    return std::scoped_lock(one.changing_, other.changing_);
  }

  // The rest: with `structure` held.
  Result<void> check_changeable() const;  // an error: the image is closed, or open for reading only
  enum class Reach { kFile, kDirectory };
  // Writes it elsewhere, and makes it durable: it alone, or with all else that has been written.
  Result<void> prepare_directory(PreparedStructure* prepared, Reach reach);
  Result<void> prepare_active(PreparedStructure* prepared, uint64_t parent, uint64_t size);
  // A table of the layer's size, in free space, for the active layer that is to be: `layer`, in `prepared` or on its way there.
  Result<void> prepare_table(PreparedStructure* prepared, Layer* layer);
  void abandon(const PreparedStructure& prepared);
  Result<void> flip(PreparedStructure* prepared);       // with the gate held exclusively: from here on it counts
  Result<void> change_to(PreparedStructure* prepared);  // prepare, flip, make durable
  Result<void> seal() { return durability_.seal(layers_.directory(), layers_.active(), space_->file_end()); }

  // Blocks are taken out of frozen layers: readers elsewhere must be told before these are used again.
  void begin_taking_out();
  Result<void> let_go();  // of what Space holds back; they are told first
  // Something is not released: what is free is not all holes.
  void note_leak() { leaks_ = true; }
  bool leaks() const { return leaks_; }  // then the image is not closed clean

 private:
  const ImageFile& image_;
  Gate& gate_;
  const std::unique_ptr<Space>& space_;
  Superblocks& superblocks_;
  Layers& layers_;
  Durability& durability_;
  Failures& failures_;

  std::mutex changing_;  // `structure`: one change at a time. Taken before all locks but `checksumming`
  // Guarded by `structure`.
  bool owing_ = false;  // readers elsewhere have not been told
  bool leaks_ = false;
};

}  // namespace pcow
