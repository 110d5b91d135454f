#include "engine/format/layer_directory.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"
#include "engine/format/remote_source.h"

namespace pcow {
namespace {

constexpr uint8_t kDirectoryMagic[8] = {'P', 'C', 'O', 'W', 'D', 'I', 'R', 0};
constexpr uint32_t kHiddenFlag = 1;
constexpr uint32_t kAutomaticFlag = 2;
constexpr uint32_t kChecksumsShift = 2;  // the position of the first such bit

// Offsets of the fields, as in docs/format.md.
enum : size_t {
  kDirectoryMagicAt = 0,
  kDirectoryChecksumAt = kDirectoryChecksumOffset,
  kCountAt = 12,
  kDirectoryUuidAt = 16,
  kNextIdAt = 32,
  kActiveAt = 40,
  kHeaderLength = 64,

  kIdAt = 0,
  kParentAt = 8,
  kTimeAt = 16,
  kSizeAt = 24,
  kTableOffsetAt = 32,
  kTableLengthAt = 40,
  kLayerFlagsAt = 48,
  kNameLengthAt = 52,
  kIdentityAt = 56,
  kRecordLength = 64,  // the name follows, padded to 8 bytes
};

// The length of the UTF-8 sequence that starts at `at`, or 0 if it is not valid (RFC 3629: no
// overlong forms, no surrogates, nothing above U+10FFFF).
size_t utf8_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const uint8_t first = byte(at);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(at + 1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const uint8_t second = byte(at + 1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
    return follows(at + 1) && follows(at + 2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const uint8_t second = byte(at + 1);
    if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
    return follows(at + 1) && follows(at + 2) && follows(at + 3) ? 4 : 0;
  }
  return 0;
}

// Whether the ranges of whole blocks are inside the file, behind the superblocks, and do not
// overlap.
bool ranges_are_apart(std::vector<std::pair<uint64_t, uint64_t>> ranges, const Geometry& geometry,
                      uint64_t file_size) {
  std::sort(ranges.begin(), ranges.end());
  uint64_t end = geometry.superblock_blocks() << geometry.block_shift();
  for (const auto& [offset, length] : ranges) {
    if (offset % geometry.block_size() || offset < end || length > file_size ||
        offset > file_size - length)
      return false;
    end = offset + round_up<uint64_t>(length, geometry.block_size());
  }
  return true;
}

}  // namespace

const Layer* LayerDirectory::find(uint64_t id) const {
  const auto at = std::lower_bound(layers.begin(), layers.end(), id,
                                   [](const Layer& l, uint64_t i) { return l.id < i; });
  return at != layers.end() && at->id == id ? &*at : nullptr;
}

Layer* LayerDirectory::find(uint64_t id) {
  return const_cast<Layer*>(static_cast<const LayerDirectory*>(this)->find(id));
}

const Layer* LayerDirectory::find(const std::string& name) const {
  if (name.empty()) return nullptr;
  const auto at =
      std::find_if(layers.begin(), layers.end(), [&](const Layer& l) { return l.name == name; });
  return at != layers.end() ? &*at : nullptr;
}

uint64_t LayerDirectory::count_children(uint64_t id) const {
  return static_cast<uint64_t>(
      std::count_if(layers.begin(), layers.end(), [&](const Layer& l) { return l.parent == id; }));
}

uint64_t LayerDirectory::features() const {
  return std::any_of(layers.begin(), layers.end(), [](const Layer& l) { return l.checksums != 0; })
             ? kLayerChecksums
             : 0;
}

void LayerDirectory::erase(uint64_t id) {
  std::erase_if(layers, [&](const Layer& l) { return l.id == id; });
}

std::vector<uint8_t> LayerDirectory::encode(const Uuid& image) const {
  std::vector<uint8_t> bytes(kHeaderLength);
  for (const Layer& layer : layers) {
    const size_t at = bytes.size();
    bytes.resize(at + kRecordLength + round_up<size_t>(layer.name.size(), 8));
    uint8_t* record = bytes.data() + at;
    put_field(record, kIdAt, layer.id);
    put_field(record, kParentAt, layer.parent);
    put_field(record, kTimeAt, layer.time_ns);
    put_field(record, kSizeAt, layer.size);
    put_field(record, kTableOffsetAt, layer.table_offset);
    put_field(record, kTableLengthAt, layer.table_length);
    put_field(record, kLayerFlagsAt,
              (layer.hidden ? kHiddenFlag : uint32_t{0}) |
                  (layer.automatic ? kAutomaticFlag : uint32_t{0}) |
                  layer.checksums << kChecksumsShift);
    put_field(record, kNameLengthAt, static_cast<uint32_t>(layer.name.size()));
    put_field(record, kIdentityAt, layer.identity);
    memcpy(record + kRecordLength, layer.name.data(), layer.name.size());
  }
  memcpy(bytes.data() + kDirectoryMagicAt, kDirectoryMagic, sizeof kDirectoryMagic);
  put_field(bytes.data(), kCountAt, static_cast<uint32_t>(layers.size()));
  put_field(bytes.data(), kDirectoryUuidAt, image);
  put_field(bytes.data(), kNextIdAt, next_id);
  put_field(bytes.data(), kActiveAt, active);
  put_field(bytes.data(), kDirectoryChecksumAt, crc32c(bytes.data(), bytes.size()));
  return bytes;
}

Result<LayerDirectory> LayerDirectory::decode(const std::vector<uint8_t>& bytes,
                                              const Superblock& superblock, uint64_t file_size,
                                              const std::string& where) {
  const auto corrupt = [&](const std::string& what) {
    return Error(Code::kCorrupt, where + ": the layer directory " + what);
  };
  if (bytes.size() < kHeaderLength ||
      memcmp(bytes.data() + kDirectoryMagicAt, kDirectoryMagic, sizeof kDirectoryMagic) != 0)
    return corrupt("has no magic number");
  std::vector<uint8_t> copy = bytes;
  put_field(copy.data(), kDirectoryChecksumAt, uint32_t{0});
  if (crc32c(copy.data(), copy.size()) != get_field<uint32_t>(bytes.data(), kDirectoryChecksumAt))
    return corrupt("has a wrong checksum");
  if (get_field<Uuid>(bytes.data(), kDirectoryUuidAt) != superblock.uuid)
    return corrupt("belongs to another image");

  const Geometry geometry(superblock.block_shift);
  LayerDirectory directory;
  directory.next_id = get_field<uint64_t>(bytes.data(), kNextIdAt);
  directory.active = get_field<uint64_t>(bytes.data(), kActiveAt);
  const auto count = get_field<uint32_t>(bytes.data(), kCountAt);
  if (count == 0 || count > kMaxLayers) return corrupt("has an impossible number of layers");

  std::vector<std::pair<uint64_t, uint64_t>> ranges = {
      {superblock.directory_offset, superblock.directory_length}};
  size_t at = kHeaderLength;
  std::unordered_set<std::string> names;
  uint64_t last_id = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (bytes.size() - at < kRecordLength) return corrupt("is too short for its number of layers");
    const uint8_t* record = bytes.data() + at;
    Layer layer;
    layer.id = get_field<uint64_t>(record, kIdAt);
    layer.parent = get_field<uint64_t>(record, kParentAt);
    layer.time_ns = get_field<int64_t>(record, kTimeAt);
    layer.size = get_field<uint64_t>(record, kSizeAt);
    layer.table_offset = get_field<uint64_t>(record, kTableOffsetAt);
    layer.table_length = get_field<uint64_t>(record, kTableLengthAt);
    const auto flags = get_field<uint32_t>(record, kLayerFlagsAt);
    layer.hidden = flags & kHiddenFlag;
    layer.automatic = flags & kAutomaticFlag;
    if (superblock.read_only_compatible & kLayerChecksums)
      layer.checksums = flags >> kChecksumsShift;
    layer.identity = get_field<uint64_t>(record, kIdentityAt);
    const auto name_length = get_field<uint32_t>(record, kNameLengthAt);
    at += kRecordLength;
    if (name_length > kMaxNameLength || bytes.size() - at < round_up<size_t>(name_length, 8))
      return corrupt("holds a name that is too long");
    layer.name.assign(reinterpret_cast<const char*>(bytes.data()) + at, name_length);
    at += round_up<size_t>(name_length, 8);

    const std::string which = "describes layer " + std::to_string(layer.id) + " with ";
    if (layer.id <= last_id || layer.id >= directory.next_id)
      return corrupt(which + "an id out of order");
    last_id = layer.id;
    if (layer.parent && (layer.parent >= layer.id || !directory.find(layer.parent)))
      return corrupt(which + "a parent that does not come before it");
    if (layer.size < kMinImageSize || layer.size > geometry.max_image_size() ||
        layer.size % kPageSize)
      return corrupt(which + "an impossible size");
    if (layer.table_length != geometry.table_length(layer.size))
      return corrupt(which + "a table of the wrong length");
    if (const Layer* parent = directory.find(layer.parent); parent && parent->size > layer.size)
      return corrupt(which + "a size smaller than its parent's");
    const bool named = layer.id != directory.active && !layer.hidden;
    if (named != !layer.name.empty() ||
        (named && (!check_snapshot_name(layer.name) || !names.insert(layer.name).second)))
      return corrupt(which + "a name that is not allowed");
    ranges.emplace_back(layer.table_offset, layer.table_length);
    if (layer.checksums) {
      if (layer.id == directory.active)
        return corrupt(which + "checksums, which an active layer cannot have");
      ranges.emplace_back(uint64_t{layer.checksums} << geometry.block_shift(), layer.table_length);
    }
    directory.layers.push_back(std::move(layer));
  }
  if (superblock.is_lazy()) {
    const uint64_t length = superblock.source_length;
    if (length < kSourceHeaderLength || length > kMaxSourceLength)
      return corrupt("belongs to an image whose source has an impossible length");
    ranges.emplace_back(superblock.source_offset,
                        round_up<uint64_t>(length, geometry.block_size()));
  }
  if (at != bytes.size()) return corrupt("is too long for its number of layers");
  const Layer* active = directory.find(directory.active);
  if (!active || active->hidden || directory.count_children(directory.active))
    return corrupt("names an active layer that cannot be one");
  if (!ranges_are_apart(std::move(ranges), geometry, file_size))
    return corrupt("gives ranges that overlap, or lie outside the file (was the file truncated?)");
  return directory;
}

Result<std::vector<uint8_t>> read_layer_directory_bytes(const File& file,
                                                        const Superblock& superblock) {
  auto file_size = file.size();
  if (!file_size) return file_size.error();
  constexpr uint64_t longest =
      kHeaderLength + uint64_t{kMaxLayers} * (kRecordLength + round_up(kMaxNameLength, 8u));
  if (superblock.directory_length < kHeaderLength || superblock.directory_length > longest ||
      superblock.directory_length > *file_size ||
      superblock.directory_offset > *file_size - superblock.directory_length)
    return Error(
        Code::kCorrupt,
        file.path() + ": the layer directory lies outside the file (was the file truncated?)");
  std::vector<uint8_t> bytes(superblock.directory_length);
  auto length = file.read(superblock.directory_offset, bytes.data(), bytes.size());
  if (!length) return length.error();
  if (*length != bytes.size())
    return Error(Code::kCorrupt, file.path() + ": the layer directory is cut off");
  return bytes;
}

Result<LayerDirectory> read_layer_directory(const File& file, const Superblock& superblock) {
  auto bytes = read_layer_directory_bytes(file, superblock);
  if (!bytes) return bytes.error();
  auto file_size = file.size();
  if (!file_size) return file_size.error();
  return LayerDirectory::decode(*bytes, superblock, *file_size, file.path());
}

uint64_t identity_of(const Layer& layer, const Uuid& image) {
  return layer.identity ? layer.identity : get_field<uint64_t>(image.data(), 0) + layer.id;
}

uint64_t random_identity() {
  // Six bits of a UUID are fixed, at different positions in its two halves.
  const Uuid random = random_uuid();
  const uint64_t identity =
      get_field<uint64_t>(random.data(), 0) ^ get_field<uint64_t>(random.data(), 8) << 1;
  return identity ? identity : 1;
}

Result<void> check_snapshot_name(const std::string& name) {
  const auto invalid = [&](const std::string& why) {
    return Error(Code::kInvalid, "a snapshot's name " + why);
  };
  if (name.empty()) return invalid("cannot be empty");
  if (name.size() > kMaxNameLength)
    return invalid("has at most " + std::to_string(kMaxNameLength) + " bytes; this one has " +
                   std::to_string(name.size()));
  if (name == "." || name == "..") return invalid("cannot be \"" + name + "\"");
  for (size_t at = 0; at < name.size();) {
    const auto byte = static_cast<uint8_t>(name[at]);
    if (byte == '/' || byte == '@')
      return invalid(std::string("cannot hold \"") + name[at] + "\": " + name);
    if (byte <= ' ' || byte == 0x7f)
      return invalid("cannot hold spaces, newlines or control characters");
    const size_t length = utf8_length(name, at);
    if (length == 0) return invalid("must be valid UTF-8");
    at += length;
  }
  return {};
}

}  // namespace pcow
