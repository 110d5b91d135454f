// Bases: frozen layers in other image files (docs/format.md, "Base reference").
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/format/superblock.h"
#include "engine/image/chain.h"
#include "engine/image/generation_watch.h"
#include "engine/image/image_file.h"

namespace pcow {

struct FoundBase {
  BaseReference reference;  // with the path as it will be stored in the image
  uint32_t block_size = 0;  // bytes
  uint64_t size = 0;        // bytes of the base layer
};

// Finds the base of a new image at `image_path`. The stored path is relative to the image's
// directory if the base is in or below that directory, or if the caller's path is relative;
// otherwise it is absolute. Waits until the layer is durable.
Result<FoundBase> find_base(const std::string& image_path, const BaseSpec& spec);

using BaseFiles = std::vector<std::shared_ptr<File>>;

// The chain of bases below an image.
struct BaseChain {
  BaseFiles files;              // nearest first
  Chain::Sources sources;       // nearest layer first
  std::vector<LayerRef> names;  // the same, for messages
  std::vector<Watch> watches;   // one for each file
  std::string resolved;         // path of the first file
  uint64_t size = 0;            // bytes of the nearest layer; 0: no base
};

// The bases of an open image: those on which it stands, and during a rebase also those on which it
// will stand.
class Bases {
 public:
  explicit Bases(const ImageFile& image, bool are_given = false)
      : image_(image), are_given_(are_given) {}

  // `held`: open files that may be used instead of what the paths lead to.
  Result<BaseChain> open(std::optional<BaseReference> reference, const BaseFiles& held) const;
  Result<BaseFiles> adopt_given(const std::vector<GivenFile>& bases) const;

  // The other methods read with the gate held, and change with the gate held exclusively.
  const BaseChain& current() const { return current_; }
  bool is_stale() const;  // another process has changed the structure of one of the files
  // The open files, with which a chain can be opened again without paths and without more
  // descriptors.
  BaseFiles held_files() const;
  void give(BaseFiles files) { given_ = std::move(files); }
  void adopt(BaseChain bases) { current_ = std::move(bases); }

  // During a rebase there are also the coming bases, from begin_change() to end_change().
  void begin_change(std::optional<BaseReference> reference, BaseChain bases);
  BaseChain end_change();  // returns the coming bases
  // Null: no rebase.
  std::shared_ptr<const Chain> coming_chain() const { return coming_ ? coming_->chain : nullptr; }
  // Opens the coming bases again, from the open files.
  Result<std::optional<BaseChain>> open_coming() const;
  void adopt_coming(BaseChain bases) {
    begin_change(std::move(coming_->reference), std::move(bases));
  }

 private:
  // The coming base, while an image takes in how its present base differs from it.
  struct Coming {
    std::optional<BaseReference> reference;
    BaseChain bases;
    std::shared_ptr<const Chain> chain;
  };

  const ImageFile& image_;
  const bool are_given_;  // as descriptors (OpenOptions::given): no path is tried
  // Guarded by the gate.
  BaseFiles given_;  // files that a process with the right to open them has opened for this one
  BaseChain current_;
  std::optional<Coming> coming_;  // during a rebase
};

}  // namespace pcow
