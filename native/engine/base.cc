#include "base.h"

#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "image_state.h"
#include "rules.h"

namespace pcow {
namespace {

Result<std::string> real_path(const std::string& path) {
  char resolved[PATH_MAX];
  if (!realpath(path.c_str(), resolved)) return system_error(errno, "cannot find " + path);
  return std::string(resolved);
}

// Where an open file really is: what the descriptor was opened through does not matter any more.
Result<std::string> path_of(const File& file) {
  char target[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(file.descriptor());
  const ssize_t length = readlink(link.c_str(), target, sizeof target);
  if (length < 0) return system_error(errno, "cannot tell where " + file.path() + " is");
  return std::string(target, static_cast<size_t>(length));
}

bool lies_in(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() + 1 && path.compare(0, directory.size(), directory) == 0 &&
         (directory == "/" || path[directory.size()] == '/');
}

Error missing_base(const std::string& image, const std::string& base, const Error& why) {
  const std::string said = why.code == Code::kNotFound ? ", which is not there" : ": " + why.message;
  return Error(Code::kBaseMissing, why.err, image + " stands on " + base + said);
}

// A frozen layer that was not sealed when the host went down is no consistent cut: its snapshot never returned. It loses
// its name and is merged away like a deleted one.
bool drop_unsealed_names(Directory* directory, uint64_t sealed) {
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

Result<std::string> directory_of(const std::string& image_path) {
  auto real = real_path(image_path);
  if (!real) return real;
  return real->substr(0, std::max<size_t>(1, real->rfind('/')));
}

Result<LoadedStructure> load_structure(const File& file, const GenerationWatch* watch) {
  // With a writer at work, a slot may be half written and a directory replaced between our two looks: look again. A slot
  // that a crash has torn stays torn; after the last round the other slot counts.
  constexpr int kRounds = 50;
  for (int round = 0;; round++) {
    const bool last = !watch || round == kRounds;
    LoadedStructure loaded;
    if (watch) loaded.seen = watch->now();
    auto superblock = read_superblock(file);
    Result<Directory> directory = superblock ? read_directory(file, *superblock) : superblock.error();
    if (directory && (last || superblock->generation == loaded.seen)) {
      loaded.superblock = *superblock;
      loaded.directory = std::move(*directory);
      const bool host_crashed = !superblock->clean && superblock->boot != boot_id();
      loaded.crashed = host_crashed && keeps(Rule::kDropUndurable);
      if (host_crashed && keeps(Rule::kHideUnsealed))
        loaded.names_dropped = drop_unsealed_names(&loaded.directory, superblock->sealed);
      return loaded;
    }
    if (!directory && (last || (superblock && superblock->generation == loaded.seen && watch->now() == loaded.seen)))
      return directory.error();
    const timespec pause = {0, 200'000};
    nanosleep(&pause, nullptr);
  }
}

Result<FoundBase> find_base(const std::string& image_path, const BaseSpec& spec) {
  auto file = File::open(spec.path, false, nullptr);
  if (!file) return missing_base(image_path, spec.path, file.error());
  auto watch = GenerationWatch::start(**file);
  if (!watch) return watch.error();
  auto loaded = load_structure(**file, watch->get());
  if (!loaded) return loaded.error();

  const Layer* layer = spec.layer ? loaded->directory.find(spec.layer) : loaded->directory.find(spec.snapshot);
  if (!layer || layer->id == loaded->directory.active)
    return Error(Code::kNotFound, spec.layer ? spec.path + " has no frozen layer " + std::to_string(spec.layer)
                                             : spec.path + " has no snapshot called " + spec.snapshot);
  FoundBase found;
  found.block_size = Geometry(loaded->superblock.block_shift).block_size();
  found.size = layer->size;
  found.reference.uuid = loaded->superblock.uuid;
  found.reference.layer = layer->id;

  const std::filesystem::path given(image_path);
  auto directory = real_path(given.has_parent_path() ? given.parent_path().string() : ".");
  if (!directory) return directory.error();
  auto real = path_of(**file);
  if (!real) return real.error();
  if (lies_in(*real, *directory) || spec.path[0] != '/') {
    found.reference.path = std::filesystem::path(*real).lexically_relative(*directory).string();
  } else {
    found.reference.path = *real;
  }
  if (found.reference.path.size() > kMaxBasePathLength)
    return Error(Code::kInvalid, "the path of the base has more than " + std::to_string(kMaxBasePathLength) +
                                     " bytes: " + found.reference.path);
  return found;
}

// The file that `stander` names as its base; the `number`-th of our chain, from 0.
Result<std::shared_ptr<File>> ImageState::open_base(const std::string& stander, const BaseReference& reference,
                                                    size_t number) const {
  if (!options.given.empty()) {
    if (number + 1 >= options.given.size())
      return Error(Code::kBaseMissing, stander + " stands on " + reference.path + ", which was not handed over");
    const GivenFile& given = options.given[number + 1];
    return File::adopt(given.path, given.descriptor, options.observer);
  }
  auto directory_path = directory_of(stander);
  if (!directory_path) return directory_path.error();
  const std::string base_path = reference.path[0] == '/' ? reference.path : *directory_path + "/" + reference.path;
  auto base = File::open(base_path, false, options.observer);
  if (!base) return missing_base(stander, base_path, base.error());
  return base;
}

// Opens the chain of bases, from the one that this image names to the last. On failure the former chain stays.
Result<void> ImageState::open_bases() {
  auto opened = open_chain(superblock.base);
  if (!opened) return opened.error();
  adopt_bases(std::move(*opened));
  return {};
}

void ImageState::adopt_bases(BaseChain bases) {
  base_sources = std::move(bases.sources);
  base_chain = std::move(bases.names);
  base_watches = std::move(bases.watches);
  base_resolved = std::move(bases.resolved);
  base_size = bases.size;
}

Result<BaseChain> ImageState::open_chain(std::optional<BaseReference> reference) const {
  BaseChain bases;
  std::set<std::pair<dev_t, ino_t>> visited;
  auto own = file->status();
  if (!own) return own.error();
  visited.emplace(own->st_dev, own->st_ino);

  std::string root;
  if (!options.base_root.empty()) {
    auto real = real_path(options.base_root);
    if (!real) return real.error();
    root = std::move(*real);
  }
  std::string stander = path;  // the image that names the next base
  while (reference) {
    if (bases.watches.size() >= kMaxChainImages)
      return Error(Code::kLimit, path + ": its chain has more than " + std::to_string(kMaxChainImages) + " images");
    auto base = open_base(stander, *reference, bases.watches.size());
    if (!base) return base.error();
    auto real = path_of(**base);
    if (!real) return real.error();
    if (!root.empty() && !lies_in(*real, root))
      return Error(Code::kBaseOutside, stander + " stands on " + *real + ", which lies outside " + root);
    auto status = (*base)->status();
    if (!status) return status.error();
    if (!visited.emplace(status->st_dev, status->st_ino).second)
      return Error(Code::kBaseLoop, path + ": its chain of bases comes back to " + *real);

    auto size = (*base)->size();
    if (!size) return size.error();
    if (*size < 2 * kPageSize) return Error(Code::kNotAnImage, *real + " is not a Pcow image (it is too short)");
    auto watch = GenerationWatch::start(**base);
    if (!watch) return watch.error();
    auto loaded = load_structure(**base, watch->get());
    if (!loaded) return loaded.error();
    if (loaded->superblock.uuid != reference->uuid)
      return Error(Code::kBaseChanged, stander + " stands on " + *real + " with uuid " + format_uuid(reference->uuid) +
                                           ", but there is now another image with uuid " +
                                           format_uuid(loaded->superblock.uuid));
    if (loaded->superblock.block_shift != geometry.block_shift())
      return Error(Code::kBaseChanged, *real + " has another block size than " + stander);
    const Layer* layer = loaded->directory.find(reference->layer);
    if (!layer || layer->id == loaded->directory.active)
      return Error(Code::kBaseChanged, stander + " stands on layer " + std::to_string(reference->layer) + " of " +
                                           *real + ", which does not exist any more");
    if (bases.watches.empty()) {
      bases.resolved = *real;
      bases.size = layer->size;
    }
    bases.names.push_back({*real, layer->name});
    for (const Layer* next = layer; next; next = loaded->directory.find(next->parent)) {
      if (bases.sources.size() >= kMaxLayers)
        return Error(Code::kLimit, path + ": its chain has more than " + std::to_string(kMaxLayers) + " layers");
      auto present = present_chunks(**base, next->table_offset, geometry.blocks_for(next->size));
      if (!present) return present.error();
      bases.sources.push_back(make_source(*base, geometry, *next, loaded->crashed, std::move(*present)));
      if (next != layer) bases.names.push_back({*real, next->name});
    }
    bases.watches.push_back({*watch, loaded->seen});
    stander = *real;
    reference = loaded->superblock.base;
  }
  return bases;
}

}  // namespace pcow
