// Snapshots: of one image, of several images at one moment, and in steps, for a monitor that
// freezes the guest's memory itself. Also the names of snapshots.
//
// The order is that of every change of structure (image/structure.h). Work that can take long is
// done before the moment of the snapshot, while the old layer still takes writes (most dirty pages
// are written back), or after it, when the new layer takes them (the sync that seals). Only the
// layer directory must be durable before the moment. But what is written back early need not be
// written back while many faults follow the moment.

#include <algorithm>

#include "engine/image/clock.h"
#include "engine/image/image_state.h"

namespace pcow {

class PendingState {
 public:
  explicit PendingState(ImageState* state) : image(state), structure(state->structure.lock()) {}
  ImageState* const image;
  std::unique_lock<std::mutex> structure;
  std::unique_lock<Gate> gate;
  PreparedStructure prepared;
  bool committed = false;
  uint64_t file_end = 0;  // bytes, at the commit
};

PendingSnapshot::PendingSnapshot(std::unique_ptr<PendingState> state) : state_(std::move(state)) {}

PendingSnapshot::~PendingSnapshot() {
  if (!state_->committed) state_->image->structure.abandon(state_->prepared);
}

Result<std::unique_ptr<PendingSnapshot>> PendingSnapshot::prepare(Image* image,
                                                                  const std::string& name,
                                                                  bool automatic,
                                                                  const SnapshotOrigin& origin) {
  ImageState& state = *image->state_;
  const auto ready = [&]() -> Result<std::unique_ptr<PendingSnapshot>> {
    PCOW_TRY(check_snapshot_name(name));
    if (origin.identity == uint64_t{0})
      return Error(Code::kInvalid,
                   "a snapshot's identity cannot be 0, which stands for none: " + name);
    auto pending = std::unique_ptr<PendingSnapshot>(
        new PendingSnapshot(std::make_unique<PendingState>(&state)));
    if (auto possible = state.structure.check_changeable(); !possible) return possible.error();
    if (state.layers.directory().find(name))
      return Error(Code::kExists, state.path + " already has a snapshot named " + name);
    PCOW_TRY(state.durability.write_back(state.space->file_end()));
    PreparedStructure& prepared = pending->state_->prepared;
    prepared.directory = state.layers.directory();
    Layer* frozen = prepared.directory.find(prepared.directory.active);
    frozen->name = name;
    frozen->automatic = automatic;
    frozen->time_ns = origin.time_ns.value_or(realtime_ns());
    frozen->identity = origin.identity.value_or(random_identity());
    PCOW_TRY(state.structure.prepare_active(&prepared, frozen->id, frozen->size));
    // All other data is durable, or is made durable after the moment: a busy writer has written
    // much more by now.
    PCOW_TRY(state.structure.prepare_directory(&prepared, Structure::Reach::kDirectory));
    return pending;
  };
  return state.failures.noted(ready());
}

void PendingSnapshot::close_gate() { state_->gate = std::unique_lock(state_->image->gate); }

Result<void> PendingSnapshot::commit() {
  auto outcome = state_->image->structure.flip(&state_->prepared);
  state_->committed = outcome.ok();
  state_->file_end = state_->image->space->file_end();
  if (outcome) state_->image->space->begin_seal();
  state_->gate.unlock();
  return state_->image->failures.noted(std::move(outcome));
}

Result<void> PendingSnapshot::finish() {
  ImageState& image = *state_->image;
  auto sealed =
      image.durability.seal(image.layers.directory(), image.layers.active(), state_->file_end);
  image.space->end_seal();
  return image.failures.noted(std::move(sealed));
}

Result<void> Image::snapshot(const std::string& name, const SnapshotOrigin& origin) {
  auto pending = PendingSnapshot::prepare(this, name, false, origin);
  if (!pending) return pending.error();
  (*pending)->close_gate();
  PCOW_TRY((*pending)->commit());
  return (*pending)->finish();
}

Result<void> Image::snapshot_together(const std::vector<Image*>& images, const std::string& name) {
  // All callers use the same order, so that no two of them wait for each other.
  std::vector<Image*> ordered = images;
  std::sort(ordered.begin(), ordered.end());
  if (std::adjacent_find(ordered.begin(), ordered.end()) != ordered.end())
    return Error(Code::kInvalid, "an image is named twice for one snapshot");
  std::vector<std::unique_ptr<PendingSnapshot>> pending;
  for (Image* image : ordered) {
    auto prepared = PendingSnapshot::prepare(image, name, false);
    if (!prepared) return prepared.error();
    pending.push_back(std::move(*prepared));
  }
  // All gates are closed before the first superblock changes: no write to any image falls between
  // two of them.
  for (const auto& snapshot : pending) snapshot->close_gate();
  Result<void> outcome;
  size_t committed = 0;
  while (committed < pending.size() && outcome) {
    outcome = pending[committed]->commit();
    if (outcome) committed++;
  }
  pending.resize(committed);
  for (const auto& snapshot : pending) {
    auto finished = snapshot->finish();
    if (!finished && outcome) outcome = finished;
  }
  return outcome;
}

// Only the layer directory contains names: a reference to a layer, in this file or in another,
// consists of its id and identity. A layer that is being merged away no longer has a name.
Result<void> Image::rename_snapshot(const std::string& from, const std::string& to) {
  ImageState& state = *state_;
  PCOW_TRY(state.failures.noted(check_snapshot_name(to)));
  return state.structure.change([&]() -> Result<void> {
    const auto layer = state.layers.snapshot_called(from);
    if (!layer) return layer.error();
    if (state.layers.directory().find(to))
      return Error(Code::kExists, state.path + " already has a snapshot named " + to);
    PreparedStructure prepared;
    prepared.directory = state.layers.directory();
    Layer* renamed = prepared.directory.find((*layer)->id);
    renamed->name = to;
    renamed->automatic = false;  // a user has chosen this name
    return state.structure.change_to(&prepared);
  });
}

Result<uint64_t> Image::freeze_for_clone(const std::string& name) {
  ImageState& state = *state_;
  const auto standing = state.structure.change([&]() -> Result<uint64_t> {
    const Layer& active = state.layers.active_layer();
    const Layer* parent = state.layers.directory().find(active.parent);
    const bool empty = state.layers.active_is_empty();
    PCOW_TRY(state.layers.untorn());
    if (empty && parent && !parent->hidden && parent->size == active.size) {
      // It is not durable yet if the sync of its snapshot failed.
      PCOW_TRY(state.structure.seal());
      return parent->id;
    }
    return uint64_t{0};
  });
  if (!standing || *standing) return standing;
  auto pending = PendingSnapshot::prepare(this, name, true);
  if (!pending) return pending.error();
  (*pending)->close_gate();
  PCOW_TRY((*pending)->commit());
  PCOW_TRY((*pending)->finish());
  return layer_id(name);
}

}  // namespace pcow
