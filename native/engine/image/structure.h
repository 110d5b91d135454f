// What all changes of an open image's structure have in common.
//
// Order of every change (docs/format.md, "What a writer does, in which order"):
//   1. The new layer directory (and a new, empty table) is written to free space, and made durable:
//      prepare_…().
//   2. With the gate held exclusively, the superblock's other slot is written: flip(). The change
//      happens at this moment.
//   3. fdatasync. Only then are the space of the old layer directory, and what only the old
//      structure used, released.
// A crash before the slot is on the disk leaves the old structure unchanged.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "engine/image/durability.h"
#include "engine/image/failures.h"
#include "engine/image/layers.h"

namespace pcow {

// A coming structure, and how much of it has been written.
struct PreparedStructure : NextLayers {
  uint64_t offset = 0;  // of the encoded layer directory in the file, bytes
  uint64_t length = 0;
  std::optional<uint64_t> sealed;     // the new value in the superblock
  std::optional<BaseReference> base;  // set together with `bases`
};

class Structure {
 public:
  Structure(const ImageFile& image, Gate& gate, const std::unique_ptr<Space>& space,
            Superblocks& superblocks, Layers& layers, Durability& durability, Failures& failures)
      : image_(image),
        gate_(gate),
        space_(space),
        superblocks_(superblocks),
        layers_(layers),
        durability_(durability),
        failures_(failures) {}

  // All changes from outside begin here: one at a time, in an image that is open for writing.
  // `work()` runs with `structure` held, and returns a Result; a failure is noted.
  template <typename Work>
  auto change(const Work& work) {
    const auto alone = [&]() -> decltype(work()) {
      const auto holding = lock();
      if (auto possible = check_changeable(); !possible) return possible.error();
      return work();
    };
    return failures_.noted(alone());
  }
  // The lock `structure` itself, for changes in steps, or of two images.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(changing_); }
  // Not locked if another change is in progress.
  [[nodiscard]] std::unique_lock<std::mutex> try_lock() {
    return std::unique_lock(changing_, std::try_to_lock);
  }
  [[nodiscard]] static std::scoped_lock<std::mutex, std::mutex> lock_both(Structure& one,
                                                                          Structure& other) {
    return std::scoped_lock(one.changing_, other.changing_);
  }

  // For the methods below the caller holds `structure`.
  Result<void> check_changeable() const;  // an error: the image is closed, or open for reading only
  enum class Reach { kFile, kDirectory };
  // Writes the layer directory to free space and makes it durable: only it, or together with
  // everything else that was written.
  Result<void> prepare_directory(PreparedStructure* prepared, Reach reach);
  Result<void> prepare_active(PreparedStructure* prepared, uint64_t parent, uint64_t size);
  // Allocates a table of the layer's size for the coming active layer: `layer`, which is in
  // `prepared` or will be added to it.
  Result<void> prepare_table(PreparedStructure* prepared, Layer* layer);
  void abandon(const PreparedStructure& prepared);
  // From here on it counts; the caller holds the gate exclusively.
  Result<void> flip(PreparedStructure* prepared);
  Result<void> change_to(PreparedStructure* prepared);  // prepare, flip, make durable
  Result<void> seal() {
    return durability_.seal(layers_.directory(), layers_.active(), space_->file_end());
  }

  // Blocks will be taken out of frozen layers: readers in other processes must see a new generation
  // before these are used again.
  void begin_taking_out();
  Result<void> let_go();  // of what Space holds back, after a superblock with the next generation
  // Something was not released, so not all free space is holes.
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

  // `structure`: one change at a time. Only `checksumming` is taken before it.
  std::mutex changing_;
  // Guarded by `structure`.
  bool owing_ = false;  // readers in other processes have not yet seen a new generation
  bool leaks_ = false;
};

}  // namespace pcow
