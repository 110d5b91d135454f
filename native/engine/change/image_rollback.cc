// Rollback: a new empty active layer on a snapshot. The order is that of every change of structure
// (image/structure.h).
#include "engine/image/deletions.h"
#include "engine/image/image_state.h"

namespace pcow {

Result<void> Image::rollback(const std::string& name) {
  ImageState& state = *state_;
  return state.structure.change([&]() -> Result<void> {
    const auto target = state.layers.snapshot_called(name);
    if (!target) return target.error();
    const Layer gone = state.layers.active_layer();
    const Layer stood_on = **target;
    PCOW_TRY(state.full_disk.giving_back_by_change([&]() -> Result<void> {
      PreparedStructure prepared;
      prepared.directory = state.layers.directory();
      prepared.directory.erase(gone.id);
      PCOW_TRY(state.structure.prepare_active(&prepared, stood_on.id, stood_on.size));
      return state.structure.change_to(&prepared);
    }));
    state.layers.note_change_of_content();
    PCOW_TRY(release_layer(&state, gone, nullptr));
    // The rollback is done, even if an earlier deletion cannot be finished.
    if (auto collected = collect(&state, nullptr); !collected)
      return leave_unfinished(&state, collected.error());
    return {};
  });
}

}  // namespace pcow
