#include "engine/image/loaded_structure.h"

#include <ctime>

#include "engine/image/generation_watch.h"
#include "engine/image/page_cache.h"
#include "engine/rules.h"

namespace pcow {
namespace {

// A frozen layer that was not sealed before a host crash is no consistent cut: the call that took
// its snapshot never returned. It loses its name and is merged away like a deleted one.
bool drop_unsealed_names(LayerDirectory* directory, uint64_t sealed) {
  bool dropped = false;
  for (Layer& layer : directory->layers) {
    if (layer.id == directory->active || layer.id <= sealed || layer.hidden) continue;
    layer.hidden = true;
    layer.name.clear();
    dropped = true;
  }
  return dropped;
}

}  // namespace

Result<LoadedStructure> load_structure(const File& file, const GenerationWatch* watch) {
  // While a writer is at work, a slot may be half written, and a layer directory replaced between
  // two looks: look again. A slot that a crash has torn stays torn; after the last round the other
  // slot counts.
  constexpr int kRounds = 50;
  for (int round = 0;; round++) {
    const bool last = !watch || round == kRounds;
    LoadedStructure loaded;
    if (watch) loaded.seen = watch->now();
    auto superblock = read_superblock(file);
    Result<LayerDirectory> directory =
        superblock ? read_layer_directory(file, *superblock) : superblock.error();
    if (watch && watch->is_torn()) return file.torn();
    if (directory && (last || superblock->generation == loaded.seen)) {
      loaded.superblock = *superblock;
      loaded.directory = std::move(*directory);
      const bool host_crashed = !superblock->clean && !page_cache_survived(file, *superblock);
      loaded.crashed = host_crashed && keeps(Rule::kDropUndurable);
      if (host_crashed && keeps(Rule::kHideUnsealed))
        loaded.names_dropped = drop_unsealed_names(&loaded.directory, superblock->sealed);
      return loaded;
    }
    if (!directory && (last || (superblock && superblock->generation == loaded.seen &&
                                watch->now() == loaded.seen)))
      return directory.error();
    const timespec pause = {0, 200'000};
    nanosleep(&pause, nullptr);
  }
}

}  // namespace pcow
