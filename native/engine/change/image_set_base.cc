// Another base, without a look at the content. The order is that of every change of structure
// (image/structure.h).
#include <shared_mutex>

#include "engine/change/new_base.h"

namespace pcow {
namespace {

// Whether two references lead to the same content, as far as they tell: the base was moved, or
// copied.
bool same_content(const std::optional<BaseReference>& one, const BaseReference& other) {
  if (!one) return false;
  if (one->identity && other.identity) return one->identity == other.identity;
  return one->uuid == other.uuid && one->layer == other.layer;
}

}  // namespace

Result<BaseReference> reference_to(const ImageState& state, const BaseSpec& spec) {
  auto found = find_base(state.path, spec);
  if (!found) return found.error();
  if (found->block_size != state.geometry.block_size())
    return Error(Code::kInvalid, spec.path + " has blocks of " + std::to_string(found->block_size) +
                                     " bytes, " + state.path + " of " +
                                     std::to_string(state.geometry.block_size()) +
                                     ": an image and its base have the same block size");
  for (const Layer& layer : state.layers.directory().layers)
    if (layer.parent == 0 && layer.size < found->size)
      return Error(
          Code::kInvalid,
          spec.path + " (" + std::to_string(found->size) + " bytes) is larger than " +
              (layer.id == state.layers.directory().active ? ""
                                                           : "snapshot " + layer.name + " of ") +
              state.path + " (" + std::to_string(layer.size) +
              " bytes): a base cannot be larger than the image");
  return std::move(found->reference);
}

Result<void> Image::set_base(const BaseSpec& spec, bool has_base) {
  ImageState& state = *state_;
  return state.structure.change([&]() -> Result<void> {
    PreparedStructure prepared;
    if (has_base) {
      auto reference = reference_to(state, spec);
      if (!reference) return reference.error();
      prepared.base = std::move(*reference);
    }
    // Open the new chain before anything is written: a base that cannot be read is refused.
    auto bases = state.bases.open(prepared.base, {});
    if (!bases) return bases.error();
    if (prepared.base ? same_content(state.superblocks.current().base, *prepared.base)
                      : !state.superblocks.current().base) {
      const std::unique_lock lock(state.gate);
      Superblock next = state.superblocks.next();
      next.base = std::move(prepared.base);
      PCOW_TRY(state.superblocks.put(next));
      state.superblocks.adopt(next);
      state.bases.adopt(std::move(*bases));
      state.layers.renew_chains();
      state.layers.note_change_of_content();
      return state.file->sync();
    }
    // Frozen layers may read differently from then on. In the same change each of them gets a new
    // identity, so that its content is not taken for the old one.
    if (state.layers.is_lazy())
      return Error(Code::kRemote, state.path +
                                      " has snapshots whose bytes are fetched by their identity, "
                                      "which another base would change: pcow prefetch fetches "
                                      "everything first");
    prepared.bases = std::move(*bases);
    prepared.directory = state.layers.directory();
    for (Layer& layer : prepared.directory.layers)
      if (layer.id != prepared.directory.active) layer.identity = random_identity();
    PCOW_TRY(state.structure.change_to(&prepared));
    state.layers.note_change_of_content();
    return {};
  });
}

}  // namespace pcow
