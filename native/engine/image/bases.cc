#include "engine/image/bases.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include "engine/image/loaded_structure.h"
#include "engine/rules.h"

namespace pcow {
namespace {

Result<std::string> real_path(const std::string& path) {
  char resolved[PATH_MAX];
  if (!realpath(path.c_str(), resolved)) return system_error(errno, "cannot find " + path);
  return std::string(resolved);
}

// The present path of an open file; the path through which it was opened does not matter any more.
Result<std::string> path_of(const File& file) {
  char target[PATH_MAX];
  const std::string link = "/proc/thread-self/fd/" + std::to_string(file.descriptor());
  const ssize_t length = readlink(link.c_str(), target, sizeof target);
  if (length < 0) return system_error(errno, "cannot find the path of " + file.path());
  return std::string(target, static_cast<size_t>(length));
}

// The directory that contains an open file, or contained it when this name was removed: a relative
// base path is relative to it. The path by which the file was opened is not used, because the file
// may have been renamed since.
Result<std::string> directory_of(const File& file) {
  auto real = path_of(file);
  if (!real) return real;
  return real->substr(0, std::max<size_t>(1, real->rfind('/')));
}

bool lies_in(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() + 1 && path.compare(0, directory.size(), directory) == 0 &&
         (directory == "/" || path[directory.size()] == '/');
}

Error missing_base(const std::string& image, const std::string& base, const Error& why) {
  const std::string said =
      why.code == Code::kNotFound ? ", which does not exist" : ": " + why.message;
  return Error(Code::kBaseMissing, why.err, image + " stands on " + base + said);
}

Error too_many_layers(const std::string& image) {
  return Error(Code::kLimit,
               image + ": its chain of bases has more than " + std::to_string(kMaxLayers) +
                   " layers: pcow flatten one of its bases, or delete snapshots of one");
}

// A file of a chain of bases, after its structure was loaded.
struct OpenedBase {
  std::shared_ptr<File> file;
  std::string name;  // its present path
  std::shared_ptr<GenerationWatch> watch;
  LoadedStructure loaded;  // contains the layer that the reference names
};

// The file's present path, or its last one if it has none any more.
std::string name_of(const File& file) {
  auto real = path_of(file);
  struct stat there;
  auto here = file.status();
  const bool named = real && here && stat(real->c_str(), &there) == 0 &&
                     there.st_dev == here->st_dev && there.st_ino == here->st_ino;
  return named ? *real : file.path();
}

// Whether the file is the one that `stander` names as its base.
Result<OpenedBase> look_at_base(std::shared_ptr<File> file, const std::string& stander,
                                const BaseReference& reference, const Geometry& geometry) {
  OpenedBase base;
  base.name = name_of(*file);
  auto size = file->size();
  if (!size) return size.error();
  if (*size < 2 * kPageSize)
    return Error(Code::kNotAnImage, base.name + " is not a Pcow image (it is too short)");
  auto watch = GenerationWatch::start(*file);
  if (!watch) return watch.error();
  auto loaded = load_structure(*file, watch->get());
  if (!loaded) return loaded.error();
  if (loaded->superblock.uuid != reference.uuid)
    return Error(Code::kBaseChanged, stander + " stands on " + base.name + " with uuid " +
                                         format_uuid(reference.uuid) +
                                         ", but there is now another image with uuid " +
                                         format_uuid(loaded->superblock.uuid));
  if (loaded->superblock.block_shift != geometry.block_shift())
    return Error(Code::kBaseChanged, base.name + " has another block size than " + stander);
  const Layer* layer = loaded->directory.find(reference.layer);
  if (!layer || layer->id == loaded->directory.active)
    return Error(Code::kBaseChanged, stander + " stands on layer " +
                                         std::to_string(reference.layer) + " of " + base.name +
                                         ", which no longer exists");
  // The layer's heir may be writing into blocks that were the layer's. The layers below it are
  // safe: a merge there has a frozen heir, which is this layer or one nearer to it, and blocks that
  // a frozen layer holds are never written in place.
  if (loaded->directory.is_spent(*layer))
    return Error(Code::kBaseChanged, stander + " stands on layer " +
                                         std::to_string(reference.layer) + " of " + base.name +
                                         ", a snapshot that was deleted");
  // A layer with the same id need not be the same snapshot: the base may have been restored from a
  // copy and frozen again.
  if (reference.identity && identity_of(*layer, loaded->superblock.uuid) != reference.identity)
    return Error(
        Code::kBaseChanged,
        stander + " stands on " + (layer->name.empty() ? "a layer" : "snapshot " + layer->name) +
            " of " + base.name +
            ", whose content has changed: the base was restored, or the snapshot was taken again");
  base.file = std::move(file);
  base.watch = std::move(*watch);
  base.loaded = std::move(*loaded);
  return base;
}

// How the files of a chain are opened.
struct BaseOpening {
  const OpenOptions& options;
  const Geometry& geometry;
  const BaseFiles& held;
  bool only_held;
};

// One of the open files, if it is what `stander` stands on: its present name does not matter, and
// there may be no descriptor left for another one. Otherwise the file to which the path leads.
Result<OpenedBase> open_base(const BaseOpening& opening, const std::string& stander,
                             const File& stander_file, const BaseReference& reference) {
  for (const auto& file : opening.held) {
    auto superblock = read_superblock(*file);
    if (!superblock || superblock->uuid != reference.uuid) continue;
    auto base = look_at_base(file, stander, reference, opening.geometry);
    if (base || base.error().code != Code::kBaseChanged) return base;
  }
  const OpenOptions& options = opening.options;
  if (opening.only_held)
    return Error(Code::kBaseMissing, stander + " stands on " + reference.path +
                                         ", which was not passed to this process");
  auto directory_path = directory_of(stander_file);
  if (!directory_path) return missing_base(stander, reference.path, directory_path.error());
  const std::string base_path =
      reference.path[0] == '/' ? reference.path : *directory_path + "/" + reference.path;
  auto file = File::open(base_path, false, options.observer);
  if (!file) return missing_base(stander, base_path, file.error());
  if (!options.base_root.empty()) {
    auto root = real_path(options.base_root);
    if (!root) return root.error();
    auto real = path_of(**file);
    if (!real) return real.error();
    if (!lies_in(*real, *root))
      return Error(Code::kBaseOutside,
                   stander + " stands on " + *real + ", which lies outside " + *root);
  }
  return look_at_base(std::move(*file), stander, reference, opening.geometry);
}

// Checks that an image can stand on this layer: that the layers below it exist, and are not too
// many.
Result<void> check_chain_below(const std::string& image, const std::shared_ptr<File>& base,
                               const LoadedStructure& loaded, const Layer& layer) {
  size_t layers = 0;
  for (const Layer* next = &layer; next; next = loaded.directory.find(next->parent)) layers++;
  if (loaded.superblock.base) {
    const ImageFile image{base->path(), {}, base, Geometry(loaded.superblock.block_shift)};
    auto below = Bases(image).open(loaded.superblock.base, {});
    if (!below) return below.error();
    layers += below->sources.size();
  }
  return layers > kMaxLayers ? Result<void>(too_many_layers(image)) : Result<void>();
}

// A disk that needs longer for a sync has worse problems.
constexpr std::chrono::minutes kSealingTime{1};

const Layer* named_by(const BaseSpec& spec, const LayerDirectory& directory) {
  return spec.layer ? directory.find(spec.layer) : directory.find(spec.snapshot);
}

// A snapshot that is being taken can be seen before it is durable, and a power cut would then
// remove it under an image that stands on it. Its writer seals it soon. If no writer lives any
// more, this process becomes the writer for a moment, because opening the image seals its layers.
Result<LoadedStructure> load_sealed(const std::shared_ptr<File>& file, const BaseSpec& spec) {
  using namespace std::chrono_literals;
  auto watch = GenerationWatch::start(*file);
  if (!watch) return watch.error();
  const std::string name =
      spec.path + "@" + (spec.layer ? std::to_string(spec.layer) : spec.snapshot);
  const auto give_up = std::chrono::steady_clock::now() + kSealingTime;
  for (;;) {
    auto loaded = load_structure(*file, watch->get());
    if (!loaded) return loaded;
    const Layer* layer = named_by(spec, loaded->directory);
    if (!layer || layer->id <= loaded->superblock.sealed || layer->id == loaded->directory.active)
      return loaded;
    if (!keeps(Rule::kSealedBeforeNamed)) return loaded;
    if (file->is_locked_by_other()) {
      if (std::chrono::steady_clock::now() > give_up)
        return Error(Code::kLocked, name + " is still being made durable by the process that has " +
                                        spec.path + " open: try again later");
      std::this_thread::sleep_for(2ms);
      continue;
    }
    OpenOptions writing;
    writing.write = true;
    auto image = Image::open(spec.path, writing);
    const Result<void> sealed = image ? (*image)->close() : Result<void>(image.error());
    if (!sealed && sealed.error().code != Code::kLocked)
      return Error(
          sealed.error().code, sealed.error().err,
          name + " is not durable, because the process that took it has ended, and " + spec.path +
              " cannot be opened for writing to make it durable: " + sealed.error().message);
  }
}

}  // namespace

Result<FoundBase> find_base(const std::string& image_path, const BaseSpec& spec) {
  auto file = File::open(spec.path, false, nullptr);
  if (!file) return missing_base(image_path, spec.path, file.error());
  auto loaded = load_sealed(*file, spec);
  if (!loaded) return loaded.error();
  const Layer* layer = named_by(spec, loaded->directory);
  if (!layer || layer->id == loaded->directory.active || loaded->directory.is_spent(*layer))
    return Error(Code::kNotFound,
                 spec.layer ? spec.path + " has no frozen layer " + std::to_string(spec.layer)
                            : spec.path + " has no snapshot named " + spec.snapshot);
  PCOW_TRY(check_chain_below(image_path, *file, *loaded, *layer));
  FoundBase found;
  found.block_size = Geometry(loaded->superblock.block_shift).block_size();
  found.size = layer->size;
  found.reference.uuid = loaded->superblock.uuid;
  found.reference.layer = layer->id;
  found.reference.identity = identity_of(*layer, loaded->superblock.uuid);

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
    return Error(Code::kInvalid, "the path of the base has more than " +
                                     std::to_string(kMaxBasePathLength) +
                                     " bytes: " + found.reference.path);
  return found;
}

bool Bases::is_stale() const {
  const auto any_has_changed = [](const std::vector<Watch>& watches) {
    return std::any_of(watches.begin(), watches.end(),
                       [](const Watch& watch) { return watch.has_changed(); });
  };
  return any_has_changed(current_.watches) || (coming_ && any_has_changed(coming_->bases.watches));
}

BaseFiles Bases::held_files() const {
  BaseFiles held = current_.files;
  held.insert(held.end(), given_.begin(), given_.end());
  return held;
}

Result<BaseFiles> Bases::adopt_given(const std::vector<GivenFile>& bases) const {
  BaseFiles files;
  for (const GivenFile& given : bases) {
    auto adopted = File::adopt(given.path, given.descriptor, image_.options.observer);
    if (!adopted) return adopted.error();
    files.push_back(std::move(*adopted));
  }
  return files;
}

void Bases::begin_change(std::optional<BaseReference> reference, BaseChain bases) {
  const auto chain = std::make_shared<Chain>(image_.geometry, bases.sources);
  coming_ = Coming{std::move(reference), std::move(bases), chain};
}

BaseChain Bases::end_change() {
  BaseChain bases = std::move(coming_->bases);
  coming_.reset();
  return bases;
}

Result<std::optional<BaseChain>> Bases::open_coming() const {
  if (!coming_) return std::optional<BaseChain>();
  auto opened = open(coming_->reference, coming_->bases.files);
  if (!opened) return opened.error();
  return std::optional<BaseChain>(std::move(*opened));
}

// Opens the chain, from the base that this image names to the last one.
Result<BaseChain> Bases::open(std::optional<BaseReference> reference, const BaseFiles& held) const {
  BaseChain bases;
  std::set<std::pair<dev_t, ino_t>> visited;
  auto own = image_.file->status();
  if (!own) return own.error();
  visited.emplace(own->st_dev, own->st_ino);
  const BaseOpening opening{image_.options, image_.geometry, held, are_given_};
  std::string stander = image_.path;  // the image that names the next base
  std::shared_ptr<File> stander_file = image_.file;
  while (reference) {
    if (bases.files.size() >= kMaxChainImages)
      return Error(Code::kLimit, image_.path + ": its chain has more than " +
                                     std::to_string(kMaxChainImages) + " images");
    auto base = open_base(opening, stander, *stander_file, *reference);
    if (!base) return base.error();
    auto status = base->file->status();
    if (!status) return status.error();
    if (!visited.emplace(status->st_dev, status->st_ino).second)
      return Error(Code::kBaseLoop,
                   image_.path + ": its chain of bases leads back to " + base->name);
    const LayerDirectory& directory = base->loaded.directory;
    const Layer* layer = directory.find(reference->layer);
    if (bases.files.empty()) {
      bases.resolved = base->name;
      bases.size = layer->size;
    }
    for (const Layer* next = layer; next; next = directory.find(next->parent)) {
      if (bases.sources.size() >= kMaxLayers) return too_many_layers(image_.path);
      auto present =
          present_chunks(*base->file, next->table_offset, image_.geometry.blocks_for(next->size));
      if (!present) return present.error();
      bases.sources.push_back(make_source(base->file, base->loaded.superblock, *next,
                                          base->loaded.crashed, std::move(*present)));
      bases.names.push_back({base->name, next->name, next->id});
    }
    bases.files.push_back(base->file);
    bases.watches.push_back({base->watch, base->loaded.seen});
    stander = base->name;
    stander_file = base->file;
    reference = base->loaded.superblock.base;
  }
  return bases;
}

}  // namespace pcow
