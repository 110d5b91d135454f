#include "engine/format/superblock.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"
#include "engine/rules.h"

namespace pcow {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'P', 'C', 'O', 'W', '\r', '\n', 0x1a};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kCleanFlag = 1;
constexpr uint64_t kLastGeneration = (uint64_t{1} << 63) - 1;

// Offsets of the fields, as in docs/format.md.
enum : size_t {
  kMagicAt = 0,
  kVersionAt = 8,
  kChecksumAt = kSuperblockChecksumOffset,
  kIncompatibleAt = 16,
  kCompatibleAt = 24,
  kGenerationAt = kGenerationOffset,
  kUuidAt = 40,
  kBlockShiftAt = 56,
  kFlagsAt = 60,
  kBootAt = 64,
  kDirectoryOffsetAt = 80,
  kDirectoryLengthAt = 88,
  kSealedAt = 96,
  kReadOnlyCompatibleAt = 104,
  kBaseUuidAt = 112,
  kBaseLayerAt = 128,
  kBasePathLengthAt = 136,
  kOpenerPidAt = 140,
  kOpenerStartAt = 144,
  kDeviceAt = 152,
  kOpenerCommandAt = 160,
  kOpenerCommandLength = 64,
  kBaseIdentityAt = 224,
  kInodeAt = 232,
  kMountAt = 240,
  kFilesystemAt = 248,
  kBasePathAt = 256,
  kReserveAt = 2304,
  kReserveBlocksAt = 2308,
  kSourceOffsetAt = 2312,
  kSourceLengthAt = 2320,
  kOpenerHostAt = 2328,
  kOpenerHostLength = 64,
};

std::string read_small_file(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return {};
  char text[4096];
  const ssize_t length = read(descriptor, text, sizeof text);
  close(descriptor);
  return length > 0 ? std::string(text, static_cast<size_t>(length)) : std::string();
}

// Field 22 of /proc/PID/stat: the 20th after the command, which is in parentheses and may contain
// any character.
uint64_t process_start_time(uint32_t pid) {
  const std::string stat = read_small_file("/proc/" + std::to_string(pid) + "/stat");
  size_t at = stat.rfind(')');
  if (at == std::string::npos) return 0;
  for (int field = 2; field < 22 && at != std::string::npos; field++) at = stat.find(' ', at + 1);
  return at == std::string::npos ? 0 : strtoull(stat.c_str() + at, nullptr, 10);
}

Uuid read_boot_id() {
  Uuid id{};
  size_t digits = 0;
  for (const char c : read_small_file("/proc/sys/kernel/random/boot_id")) {
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0 || digits == 32) continue;
    id[digits / 2] = static_cast<uint8_t>(id[digits / 2] << 4 | value);
    digits++;
  }
  return digits == 32 ? id : Uuid{};
}

std::string text_of(const uint8_t* bytes, size_t length) {
  const char* text = reinterpret_cast<const char*>(bytes);
  return {text, strnlen(text, length)};
}

uint32_t version_of(const uint8_t* page) { return get_field<uint32_t>(page, kVersionAt); }

Error newer_version(const uint8_t* page, const std::string& where) {
  return Error(Code::kUnsupported, where + " has format version " +
                                       std::to_string(version_of(page)) +
                                       "; this program knows version " + std::to_string(kVersion));
}

bool needs_unknown_features(const uint8_t* page) {
  return get_field<uint64_t>(page, kIncompatibleAt) & ~kKnownIncompatible;
}

Error unknown_features(const std::string& where) {
  return Error(Code::kUnsupported,
               where + " uses features that this program does not know: a newer pcow is needed");
}

}  // namespace

bool is_intact_slot(const uint8_t* page) {
  uint8_t copy[kPageSize];
  memcpy(copy, page, sizeof copy);
  put_field(copy, kChecksumAt, uint32_t{0});
  return memcmp(page + kMagicAt, kMagic, sizeof kMagic) == 0 &&
         crc32c(copy, sizeof copy) == get_field<uint32_t>(page, kChecksumAt);
}

std::string format_uuid(const Uuid& uuid) {
  std::string text;
  for (size_t i = 0; i < uuid.size(); i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", uuid[i]);
    text += digits;
  }
  return text;
}

Uuid random_uuid() {
  Uuid uuid{};
  size_t done = 0;
  while (done < uuid.size()) {
    const ssize_t count = getrandom(uuid.data() + done, uuid.size() - done, 0);
    if (count > 0) done += static_cast<size_t>(count);
  }
  uuid[6] = (uuid[6] & 0x0f) | 0x40;  // RFC 9562: version 4, variant 10
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
  return uuid;
}

const Uuid& boot_id() {
  static const Uuid id = read_boot_id();
  return id;
}

Opener Opener::self() {
  Opener self;
  self.pid = static_cast<uint32_t>(getpid());
  self.start_time = process_start_time(self.pid);
  std::string command = read_small_file("/proc/self/comm");
  while (!command.empty() && command.back() == '\n') command.pop_back();
  self.command = command.substr(0, kOpenerCommandLength - 1);
  utsname names;
  if (uname(&names) == 0) self.host = std::string(names.nodename).substr(0, kOpenerHostLength - 1);
  return self;
}

bool Opener::alive() const { return pid != 0 && process_start_time(pid) == start_time; }

std::array<uint8_t, kPageSize> Superblock::encode() const {
  std::array<uint8_t, kPageSize> page{};
  uint8_t* bytes = page.data();
  memcpy(bytes + kMagicAt, kMagic, sizeof kMagic);
  put_field(bytes, kVersionAt, kVersion);
  put_field(bytes, kIncompatibleAt, incompatible);
  put_field(bytes, kCompatibleAt, compatible);
  put_field(bytes, kGenerationAt, generation);
  put_field(bytes, kUuidAt, uuid);
  put_field(bytes, kBlockShiftAt, block_shift);
  put_field(bytes, kFlagsAt, clean ? kCleanFlag : uint32_t{0});
  put_field(bytes, kBootAt, boot);
  put_field(bytes, kDeviceAt, cache.device);
  put_field(bytes, kInodeAt, cache.inode);
  put_field(bytes, kMountAt, cache.mount);
  put_field(bytes, kFilesystemAt, cache.filesystem);
  put_field(bytes, kDirectoryOffsetAt, directory_offset);
  put_field(bytes, kDirectoryLengthAt, directory_length);
  put_field(bytes, kSealedAt, sealed);
  put_field(bytes, kReadOnlyCompatibleAt, read_only_compatible);
  put_field(bytes, kReserveAt, reserve);
  put_field(bytes, kReserveBlocksAt, reserve_blocks);
  put_field(bytes, kSourceOffsetAt, source_offset);
  put_field(bytes, kSourceLengthAt, source_length);
  if (base) {
    put_field(bytes, kBaseUuidAt, base->uuid);
    put_field(bytes, kBaseLayerAt, base->layer);
    put_field(bytes, kBaseIdentityAt, base->identity);
    put_field(bytes, kBasePathLengthAt, static_cast<uint32_t>(base->path.size()));
    memcpy(bytes + kBasePathAt, base->path.data(), base->path.size());
  }
  put_field(bytes, kOpenerPidAt, opener.pid);
  put_field(bytes, kOpenerStartAt, opener.start_time);
  memcpy(bytes + kOpenerCommandAt, opener.command.data(), opener.command.size());
  memcpy(bytes + kOpenerHostAt, opener.host.data(), opener.host.size());
  put_field(bytes, kChecksumAt, crc32c(bytes, page.size()));
  return page;
}

Result<Superblock> Superblock::decode(const uint8_t* page, const std::string& where) {
  if (memcmp(page + kMagicAt, kMagic, sizeof kMagic) != 0)
    return Error(Code::kNotAnImage, where + " is not a Pcow image (no magic number at its start)");
  if (!is_intact_slot(page))
    return Error(Code::kCorrupt, where + ": the superblock's checksum is wrong");
  if (version_of(page) != kVersion) return newer_version(page, where);
  if (needs_unknown_features(page)) return unknown_features(where);
  Superblock superblock;
  superblock.incompatible = get_field<uint64_t>(page, kIncompatibleAt);
  superblock.compatible = get_field<uint64_t>(page, kCompatibleAt);
  superblock.read_only_compatible = get_field<uint64_t>(page, kReadOnlyCompatibleAt);
  superblock.reserve = get_field<uint32_t>(page, kReserveAt);
  superblock.reserve_blocks = get_field<uint32_t>(page, kReserveBlocksAt);
  if (superblock.is_lazy()) {
    superblock.source_offset = get_field<uint64_t>(page, kSourceOffsetAt);
    superblock.source_length = get_field<uint64_t>(page, kSourceLengthAt);
  }
  superblock.generation = get_field<uint64_t>(page, kGenerationAt);
  superblock.uuid = get_field<Uuid>(page, kUuidAt);
  superblock.block_shift = get_field<uint32_t>(page, kBlockShiftAt);
  superblock.clean = (get_field<uint32_t>(page, kFlagsAt) & kCleanFlag) != 0;
  superblock.boot = get_field<Uuid>(page, kBootAt);
  superblock.cache.device = get_field<uint64_t>(page, kDeviceAt);
  superblock.cache.inode = get_field<uint64_t>(page, kInodeAt);
  superblock.cache.mount = get_field<uint64_t>(page, kMountAt);
  superblock.cache.filesystem = get_field<uint64_t>(page, kFilesystemAt);
  superblock.directory_offset = get_field<uint64_t>(page, kDirectoryOffsetAt);
  superblock.directory_length = get_field<uint64_t>(page, kDirectoryLengthAt);
  superblock.sealed = get_field<uint64_t>(page, kSealedAt);
  if (superblock.block_shift < kMinBlockShift || superblock.block_shift > kMaxBlockShift)
    return Error(Code::kCorrupt, where + ": the superblock gives an impossible block size");
  if (superblock.generation > kLastGeneration)
    return Error(Code::kCorrupt, where + ": the superblock gives an impossible generation");
  const auto base_length = get_field<uint32_t>(page, kBasePathLengthAt);
  if (base_length > kMaxBasePathLength)
    return Error(Code::kCorrupt,
                 where + ": the superblock gives an impossible length of the base's path");
  if (base_length) {
    BaseReference base;
    base.path.assign(reinterpret_cast<const char*>(page) + kBasePathAt, base_length);
    if (base.path.find('\0') != std::string::npos)
      return Error(Code::kCorrupt, where + ": the base's path holds a NUL byte");
    base.uuid = get_field<Uuid>(page, kBaseUuidAt);
    base.layer = get_field<uint64_t>(page, kBaseLayerAt);
    base.identity = get_field<uint64_t>(page, kBaseIdentityAt);
    superblock.base = std::move(base);
  }
  superblock.opener.pid = get_field<uint32_t>(page, kOpenerPidAt);
  superblock.opener.start_time = get_field<uint64_t>(page, kOpenerStartAt);
  superblock.opener.command = text_of(page + kOpenerCommandAt, kOpenerCommandLength);
  superblock.opener.host = text_of(page + kOpenerHostAt, kOpenerHostLength);
  return superblock;
}

Result<void> check_supported(const uint8_t* slots, const std::string& where) {
  // Nothing else is known about a slot of another version, not even which of the two is newer.
  for (const uint8_t* page : {slots, slots + kPageSize})
    if (is_intact_slot(page) && version_of(page) != kVersion) return newer_version(page, where);
  for (const size_t number : {0, 1}) {
    const uint8_t* page = slots + number * kPageSize;
    const uint8_t* other = slots + (1 - number) * kPageSize;
    if (!is_intact_slot(page) || !needs_unknown_features(page)) continue;
    // If the other slot is newer, the program that knew the feature no longer needs it.
    if (!is_intact_slot(other) ||
        get_field<uint64_t>(page, kGenerationAt) >= get_field<uint64_t>(other, kGenerationAt))
      return unknown_features(where);
  }
  return {};
}

Result<Superblock> choose_superblock(const uint8_t* slots, const std::string& where) {
  PCOW_TRY(check_supported(slots, where));
  const auto contradiction = [&](const std::string& what) {
    return Error(Code::kCorrupt, where + ": " + what + "; pcow check lists all damage");
  };
  std::optional<Superblock> newest;
  std::optional<Error> torn;
  for (const uint64_t number : {0, 1}) {
    auto slot = Superblock::decode(slots + number * kPageSize, where);
    if (!slot) {
      // The older one: see check_supported().
      if (slot.error().code == Code::kUnsupported) continue;
      if (is_intact_slot(slots + number * kPageSize)) return slot.error();
      // Neither slot is intact: report the more specific error.
      if (!torn || torn->code == Code::kNotAnImage) torn = slot.error();
      continue;
    }
    // The next superblock goes into the slot that does not count only if each generation is in its
    // own slot.
    if ((slot->generation & 1) != number)
      return contradiction("superblock slot " + std::to_string(number) +
                           " holds a generation of the other slot");
    if (newest && (newest->uuid != slot->uuid || newest->block_shift != slot->block_shift))
      return contradiction("the two superblock slots are of different images");
    if (!newest || slot->generation > newest->generation) newest = std::move(*slot);
  }
  if (!newest) return *torn;
  return std::move(*newest);
}

Result<Superblock> read_superblock(const File& file) {
  std::array<uint8_t, 2 * kPageSize> slots{};
  auto length = file.read(0, slots.data(), slots.size());
  if (!length) return length.error();
  return choose_superblock(slots.data(), file.path());
}

Result<void> write_superblock(File& file, const Superblock& superblock) {
  const auto page = superblock.encode();
  const uint64_t slot = keeps(Rule::kOtherSlot) ? superblock.generation & 1 : 0;
  return file.write(slot * kPageSize, page.data(), page.size());
}

Result<void> sync_superblock(File& file) { return file.sync_stored(0, 2 * kPageSize); }

}  // namespace pcow
