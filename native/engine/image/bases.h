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
  BaseReference reference;  // with the path as it is to be stored in the image
  uint32_t block_size = 0;  // bytes
  uint64_t size = 0;        // bytes of the base layer
};

// Looks up what a new image at `image_path` is to stand on. The stored path is relative to the image's directory where
// the base lies in or below it, or where the caller's path is relative; otherwise absolute. Waits until the layer is durable.
Result<FoundBase> find_base(const std::string& image_path, const BaseSpec& spec);

using BaseFiles = std::vector<std::shared_ptr<File>>;

// The chain of bases below an image.
struct BaseChain {
  BaseFiles files;              // nearest first
  Chain::Sources sources;       // nearest layer first
  std::vector<LayerRef> names;  // the same for people
  std::vector<Watch> watches;   // one for each file
  std::string resolved;         // where the first file is
  uint64_t size = 0;            // bytes of the nearest layer; 0: no base
};

// The bases of an open image: those on which it stands, and during a rebase those on which it is to stand.
class Bases {
 public:
  explicit Bases(const ImageFile& image, bool are_given = false) : image_(image), are_given_(are_given) {}

  // `held`: files that may be used in place of what the paths lead to.
  Result<BaseChain> open(std::optional<BaseReference> reference, const BaseFiles& held) const;
  Result<BaseFiles> adopt_given(const std::vector<GivenFile>& bases) const;

  // The rest looks with the gate held, and changes with the gate held exclusively.
  const BaseChain& current() const { return current_; }
  bool is_stale() const;  // another process has changed the structure of one of the files
  // What a chain is opened anew with: the files that we have need no path, and no descriptor more.
  BaseFiles held_files() const;
  void give(BaseFiles files) { given_ = std::move(files); }
  void adopt(BaseChain bases) { current_ = std::move(bases); }

  // A rebase, until whose end there are other bases that are to be.
  void begin_change(std::optional<BaseReference> reference, BaseChain bases);
  BaseChain end_change();  // returns those that were to be
  std::shared_ptr<const Chain> coming_chain() const { return coming_ ? coming_->chain : nullptr; }  // null: no rebase
  // They are opened anew from the files that we have.
  Result<std::optional<BaseChain>> open_coming() const;
  void adopt_coming(BaseChain bases) { begin_change(std::move(coming_->reference), std::move(bases)); }

 private:
  // The base that is to be, while an image takes in how the one that it has differs.
  struct Coming {
    std::optional<BaseReference> reference;
    BaseChain bases;
    std::shared_ptr<const Chain> chain;
  };

  const ImageFile& image_;
  const bool are_given_;  // by descriptors (OpenOptions::given): no path is tried
  // Guarded by the gate.
  BaseFiles given_;  // what somebody who may open them has opened for us
  BaseChain current_;
  std::optional<Coming> coming_;  // during a rebase
};

}  // namespace pcow
