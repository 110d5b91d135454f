// What an image reports about itself.
#include <bit>
#include <shared_mutex>

#include "engine/image/image_state.h"

namespace pcow {
namespace {

// The caller holds the gate.
SnapshotInfo describe(const ImageState& state, const Layer& layer, uint64_t children) {
  const LayerDirectory& directory = state.layers.directory();
  SnapshotInfo info;
  info.name = layer.name;
  info.id = layer.id;
  info.identity = identity_of(layer, state.superblocks.current().uuid);
  // Users do not see hidden layers: the parent is the nearest layer that is not hidden.
  const Layer* parent = directory.find(layer.parent);
  while (parent && parent->hidden) parent = directory.find(parent->parent);
  if (parent) info.parent = parent->name;
  info.time_ns = layer.time_ns;
  info.size = layer.size;
  info.children = children;
  info.automatic = layer.automatic;
  info.current = directory.active_layer().parent == layer.id;
  return info;
}

// Empty: this host.
std::string host_of_writer(const ImageState& state) {
  if (state.writable() || !state.file->is_locked_by_other_host()) return "";
  const std::string& name = state.superblocks.current().opener.host;
  return name.empty() ? "?" : name;
}

}  // namespace

ImageInfo Image::info() const {
  ImageState& state = *state_;
  (void)state.layers.bring_up_to_date();
  const std::shared_lock lock(state.gate);
  ImageInfo info;
  info.path = state.path;
  info.uuid = format_uuid(state.superblocks.current().uuid);
  info.format_version = 1;
  info.size = state.layers.active_layer().size;
  info.block_size = state.geometry.block_size();
  info.sub_block_size = state.geometry.sub_block_size();
  if (auto status = state.file->status()) {
    info.file_size = static_cast<uint64_t>(status->st_size);
    info.disk_use = static_cast<uint64_t>(status->st_blocks) * 512;
  }
  info.lazy = state.layers.is_lazy();
  for (const auto& source : state.bases.current().sources) info.stands_on_lazy |= source->lazy;
  info.persistent = state.file->is_persistent();
  info.kernel_writes = state.file->kernel_calls().writes;
  info.kernel_syncs = state.file->kernel_calls().syncs;
  info.clean = state.superblocks.current().clean;
  info.writable = state.writable() && !state.layers.is_closed();
  info.generation = state.superblocks.current().generation;
  for (const Layer& layer : state.layers.directory().layers)
    info.snapshots += layer.name.empty() ? 0 : 1;
  info.chain.push_back({state.path, "", state.layers.directory().active});
  for (const Layer* layer = state.layers.directory().find(state.layers.active_layer().parent);
       layer; layer = state.layers.directory().find(layer->parent))
    info.chain.push_back({state.path, layer->name, layer->id});
  info.chain.insert(info.chain.end(), state.bases.current().names.begin(),
                    state.bases.current().names.end());
  if (const auto& base = state.superblocks.current().base) {
    info.has_base = true;
    info.base_path = base->path;
    info.base_resolved = state.bases.current().resolved;
    info.base_uuid = format_uuid(base->uuid);
    info.base_layer = base->layer;
    if (!state.bases.current().names.empty())
      info.base_snapshot = state.bases.current().names.front().snapshot;
  }
  const Opener& opener = state.superblocks.current().opener;
  if (info.writable || (!state.layers.is_closed() && state.file->is_locked_by_other())) {
    info.has_holder = true;
    info.holder = {opener.pid, opener.start_time, opener.command, host_of_writer(state)};
  }
  info.has_opener = opener.pid != 0;
  info.opener = {opener.pid, opener.start_time, opener.command, ""};
  info.last_error = state.failures.last();
  return info;
}

Result<std::vector<SnapshotInfo>> Image::snapshots(bool with_data) const {
  ImageState& state = *state_;
  PCOW_TRY(state.layers.bring_up_to_date());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  const LayerDirectory& directory = state.layers.directory();
  std::vector<uint64_t> children(directory.layers.size());
  for (const Layer& layer : directory.layers)
    if (const Layer* parent = directory.find(layer.parent))
      children[static_cast<size_t>(parent - directory.layers.data())]++;
  std::vector<SnapshotInfo> found;
  for (size_t number = 0; number < directory.layers.size(); number++) {
    const Layer& layer = directory.layers[number];
    if (layer.name.empty()) continue;
    SnapshotInfo info = describe(state, layer, children[number]);
    if (with_data) {
      const Source& source = *state.layers.source_in_use(layer.id);
      for (const auto& [first, end] : source.present) {
        for (uint64_t chunk = first; chunk < end; chunk++) {
          EntryPage page;
          PCOW_TRY(
              read_entry_page(*source.file, source.table_offset, source.entries, chunk, &page));
          for (const uint64_t word : page) {
            const Entry entry = Entry::unpack(word);
            if (entry.has_data())
              info.data += uint64_t(std::popcount(entry.written))
                           << state.geometry.sub_block_shift();
          }
        }
      }
    }
    found.push_back(std::move(info));
  }
  return found;
}

Result<SnapshotInfo> Image::snapshot_info(const std::string& name) const {
  ImageState& state = *state_;
  PCOW_TRY(state.layers.bring_up_to_date());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  const auto layer = state.layers.snapshot_called(name);
  if (!layer) return layer.error();
  return describe(state, **layer, state.layers.directory().count_children((*layer)->id));
}

Result<std::vector<std::string>> Image::snapshot_names() const {
  ImageState& state = *state_;
  PCOW_TRY(state.layers.bring_up_to_date());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  std::vector<std::string> names;
  for (const Layer& layer : state.layers.directory().layers)
    if (!layer.name.empty()) names.push_back(layer.name);
  return names;
}

uint64_t Image::size() const {
  (void)state_->layers.bring_up_to_date();
  const std::shared_lock lock(state_->gate);
  return state_->layers.active_layer().size;
}

std::string Image::file_identity() const {
  const auto status = state_->file->status();
  return status ? std::to_string(status->st_dev) + ":" + std::to_string(status->st_ino) : "";
}

uint64_t Image::content_generation() const { return state_->layers.content_generation(); }

Result<std::shared_ptr<View>> Image::view(const std::string& snapshot) const {
  ImageState& state = *state_;
  PCOW_TRY(state.layers.bring_up_to_date());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  const auto layer = state.failures.noted(state.layers.snapshot_called(snapshot));
  if (!layer) return layer.error();
  return std::make_shared<View>((*layer)->id, (*layer)->size, true);
}

Result<std::shared_ptr<View>> Image::view_of_layer(uint64_t layer) const {
  ImageState& state = *state_;
  if (state.layers.is_stale()) PCOW_TRY(state.layers.refresh());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  auto found = state.layers.layer_in_view(View(layer, 0, false));
  if (!found) return state.failures.noted(Result<std::shared_ptr<View>>(found.error()));
  return std::make_shared<View>(layer, (*found)->size, false);
}

Result<std::vector<LayerInfo>> Image::layers() const {
  ImageState& state = *state_;
  if (state.layers.is_stale()) PCOW_TRY(state.layers.refresh());
  const std::shared_lock lock(state.gate);
  if (state.layers.is_closed()) return state.closed_error();
  std::vector<LayerInfo> found;
  for (const Layer& layer : state.layers.directory().layers) {
    const bool active = layer.id == state.layers.directory().active;
    found.push_back({layer.id, layer.parent, layer.name, layer.hidden, active,
                     active ? 0 : identity_of(layer, state.superblocks.current().uuid),
                     layer.time_ns, layer.size});
  }
  return found;
}

Result<uint64_t> Image::layer_id(const std::string& snapshot) const {
  ImageState& state = *state_;
  if (state.layers.is_stale()) PCOW_TRY(state.layers.refresh());
  const std::shared_lock lock(state.gate);
  if (snapshot.empty()) return state.layers.directory().active;
  const auto layer = state.layers.snapshot_called(snapshot);
  if (!layer) return layer.error();
  return (*layer)->id;
}

uint64_t Image::view_size(const View& view) const { return view.size(); }

}  // namespace pcow
