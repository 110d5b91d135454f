// Giving back: blocks of a lazy image become remote again, because their bytes can be fetched again.
//
// Order (docs/format.md, "Giving back"), as in a compaction (image_compact.cc):
//   1. The entries become remote, one by one.
//   2. A superblock with the next generation makes readers in other processes load the tables
//      again; those of this process get other chains.
//   3. Only then are the blocks released: one sync makes the remote entries durable and punches the
//      blocks, and the next sync makes them free.
// After a crash an entry is remote, or it names its block as before, with all of its bytes.
//
// No process has such a block mapped: a monitor maps only what the active layer of an image holds,
// and has copies of what frozen layers hold.

#include <mutex>
#include <shared_mutex>

#include "engine/image/image_state.h"
#include "engine/rules.h"

namespace pcow {
namespace {

// A merge of the layer below may have put other bytes into the layer, and one into its heir must
// not find remote bytes.
bool may_give_back(const ImageState& state, const Layer& layer) {
  const LayerDirectory& directory = state.layers.directory();
  const Layer* parent = directory.find(layer.parent);
  return !layer.name.empty() && !directory.is_spent(layer) && !(parent && parent->hidden);
}

// Step 1. Returns for each block whether it is remote now.
Result<std::vector<bool>> make_remote(ImageState& state, const Layer& layer,
                                      const std::vector<RemoteEntry>& blocks) {
  std::vector<bool> given(blocks.size());
  auto table = state.filling.table_of(state, layer);
  if (!table) return table.error();
  const std::shared_lock lock(state.gate);
  for (size_t i = 0; i < blocks.size(); i++) {
    const auto [block, mask] = blocks[i];
    if (block >= (*table)->entries()) continue;
    PCOW_TRY((*table)->ensure(block / kBlocksPerChunk));
    const std::lock_guard storing(state.chunk_locks.of(block));
    const Entry entry = Entry::unpack((*table)->load(block));
    // The source has exactly the bytes of `mask`. All of them must be there again after a crash.
    given[i] = entry.index && entry.written == mask && entry.durable == mask;
    if (!given[i]) continue;
    if (!keeps(Rule::kRemoteBeforeRelease)) {
      state.space->release_now(entry.index);
      PCOW_TRY(state.file->sync());
      PCOW_TRY(state.space->finish_sync(state.space->take_released()));
    }
    (*table)->store(block, {0, mask, mask, true});
    if (keeps(Rule::kRemoteBeforeRelease)) state.space->release(entry.index, 1);
  }
  return given;
}

}  // namespace

bool Image::take_uses(uint64_t id, uint64_t block, uint64_t count) const {
  ImageState& state = *state_;
  const std::shared_lock lock(state.gate);
  const Layer* layer = state.layers.directory().find(id);
  if (!layer || id == state.layers.directory().active) return false;
  const auto& uses = state.layers.source_in_use(id)->uses;
  return uses && uses->take(block, count);
}

Result<std::vector<bool>> Image::give_back(uint64_t id, const std::vector<RemoteEntry>& blocks) {
  ImageState& state = *state_;
  const auto holding = state.structure.try_lock();
  if (!holding)
    return Error(Code::kBusy, state.path + " is being changed: it gives nothing back now");
  const auto give = [&]() -> Result<std::vector<bool>> {
    PCOW_TRY(state.structure.check_changeable());
    const Layer* layer = state.layers.directory().find(id);
    if (!state.layers.is_lazy() || !layer || !may_give_back(state, *layer))
      return std::vector<bool>(blocks.size());
    state.structure.begin_taking_out();
    auto given = make_remote(state, *layer, blocks);
    // What was given back is completed even if the rest failed.
    {
      const std::unique_lock lock(state.gate);
      state.layers.renew_chains();
    }
    PCOW_TRY(state.structure.let_go());
    PCOW_TRY(state.durability.sync());
    PCOW_TRY(state.durability.sync());
    return given;
  };
  return state.failures.noted(give());
}

}  // namespace pcow
