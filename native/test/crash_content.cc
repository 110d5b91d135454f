#include "crash_content.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "engine/check/check.h"
#include "engine/check/scrub.h"
#include "engine/disk/page.h"

using namespace pcow;

namespace crash {

World exactly(const Content& content) {
  World world;
  for (const uint64_t stamp : content.active) world.active.push_back({stamp});
  world.snapshots = content.snapshots;
  return world;
}

// Odd, so that a multiplication by it can be undone.
constexpr uint64_t kMixer = 0x9e3779b97f4a7c15u;
constexpr uint64_t kUnmixer = [] {
  uint64_t inverse = kMixer;
  for (int i = 0; i < 6; i++) inverse *= 2 - kMixer * inverse;
  return inverse;
}();
static_assert(kMixer * kUnmixer == 1);

constexpr size_t kWords = kSector / 8;
using TornSector = std::array<uint64_t, kWords>;  // stamps
constexpr uint64_t kTorn = uint64_t{1} << 63;     // marks the number of a torn sector

struct TornSectors {
  std::vector<TornSector> by_number;
  std::map<TornSector, uint64_t> numbers;
};
static TornSectors torn_sectors;

static uint64_t word_stamp(uint64_t stamp, size_t word) {
  return stamp & kTorn ? torn_sectors.by_number[stamp & ~kTorn][word] : stamp;
}

static bool may_hold(const std::set<uint64_t>& allowed, uint64_t stamp) {
  if (allowed.contains(stamp)) return true;
  if (!(stamp & kTorn)) return false;
  for (size_t word = 0; word < kWords; word++) {
    const bool known = std::any_of(allowed.begin(), allowed.end(), [&](uint64_t one) {
      return word_stamp(one, word) == word_stamp(stamp, word);
    });
    if (!known) return false;
  }
  return true;
}

bool allows(const World& world, const Content& content) {
  if (world.snapshots != content.snapshots || world.active.size() != content.active.size())
    return false;
  for (size_t i = 0; i < content.active.size(); i++)
    if (!may_hold(world.active[i], content.active[i])) return false;
  return true;
}

void fill_sector(uint64_t stamp, uint64_t sector, uint8_t* bytes) {
  uint64_t words[kWords];
  for (size_t i = 0; i < kWords; i++) words[i] = stamp * kMixer + sector * kWords + i;
  words[0] = stamp;
  memcpy(bytes, words, kSector);
}

static std::optional<uint64_t> torn_stamp_of(const Run& run, const uint8_t* bytes,
                                             uint64_t sector) {
  TornSector torn;
  for (size_t i = 0; i < kWords; i++) {
    uint64_t word;
    memcpy(&word, bytes + i * 8, 8);
    torn[i] = i == 0 || word == 0 ? word : (word - sector * kWords - i) * kUnmixer;
    if (torn[i] > run.stamps) return std::nullopt;
  }
  const auto [at, fresh] =
      torn_sectors.numbers.emplace(torn, kTorn | torn_sectors.by_number.size());
  if (fresh) torn_sectors.by_number.push_back(torn);
  return at->second;
}

static std::optional<uint64_t> stamp_of(const Run& run, const uint8_t* bytes, uint64_t sector) {
  static const uint8_t zeros[kSector] = {};
  if (memcmp(bytes, zeros, kSector) == 0) return 0;
  uint64_t stamp;
  memcpy(&stamp, bytes, sizeof stamp);
  uint8_t expected[kSector];
  fill_sector(stamp, sector, expected);
  if (memcmp(bytes, expected, kSector) != 0)
    return run.persistent ? torn_stamp_of(run, bytes, sector) : std::nullopt;
  return stamp;
}

Result<std::unique_ptr<Image>> open_image(const std::string& path, bool write,
                                          FileObserver* observer) {
  OpenOptions options;
  options.write = write;
  options.observer = observer;
  return Image::open(path, options);
}

void must_have_checksums(const Run& run, const Image& image, bool whole) {
  const ScrubReport report = run.must(image.scrub(nullptr), "scrub");
  if (report.damages) run.fail("the scrub finds: " + report.findings.front().message);
  for (const ScrubbedLayer& layer : report.layers)
    if (whole && layer.has_checksums && layer.missing) run.fail("checksums are missing");
}

void must_be_sound(const Run& run, const std::string& path) {
  const CheckReport report = run.must(check_image(path, {}, nullptr), "check");
  if (report.damages || report.leaks)
    run.fail("the check finds: " + report.findings.front().message);
}

Stamps read_stamps(const Run& run, const Image& image, const View* view, const std::string& what) {
  const uint64_t size = view ? image.view_size(*view) : image.size();
  std::vector<uint8_t> bytes(size);
  auto read = image.read(view, 0, bytes.data(), size);
  if (!read && read.error().code == Code::kRemote) {
    for (uint64_t at = 0; at < size; at += kPageSize) {
      read = image.read(view, at, bytes.data() + at, kPageSize);
      if (!read && read.error().code == Code::kRemote) {
        for (uint64_t i = at / kSector; i < (at + kPageSize) / kSector; i++)
          fill_sector(run.registry[i], i, bytes.data() + i * kSector);
      } else if (run.must(std::move(read), "read a page") != kPageSize) {
        run.fail(what + " is short");
      }
    }
  } else if (run.must(std::move(read), "read") != size) {
    run.fail(what + " is short");
  }
  Stamps stamps(size / kSector);
  for (size_t i = 0; i < stamps.size(); i++) {
    const auto stamp = stamp_of(run, bytes.data() + i * kSector, i);
    if (!stamp)
      run.fail(what + " holds in sector " + std::to_string(i) + " what nobody wrote there");
    stamps[i] = *stamp;
  }
  return stamps;
}

Result<void> fetch(const Run& run, Image* image, uint64_t layer, uint64_t block, uint64_t blocks) {
  const uint64_t length = image->info().block_size;
  std::vector<uint8_t> bytes(blocks * length);
  for (uint64_t i = 0; i < bytes.size() / kSector; i++) {
    const uint64_t sector = block * length / kSector + i;
    if (sector < run.registry.size() && run.registry[sector])
      fill_sector(run.registry[sector], sector, bytes.data() + i * kSector);
  }
  auto filled = image->fill(layer, block, bytes.data(), bytes.size());
  return filled ? Result<void>() : filled.error();
}

Result<void> fetch_all(const Run& run, Image* image) {
  auto layers = image->layers();
  if (!layers) return layers.error();
  for (const LayerInfo& layer : *layers) {
    auto batch = image->remote_blocks(layer.id, 0);
    if (!batch) return batch.error();
    for (const RemoteEntry& entry : batch->blocks)
      PCOW_TRY(fetch(run, image, layer.id, entry.block, 1));
  }
  return {};
}

Content read_content(const Run& run, const Image& image) {
  Content content;
  content.active = read_stamps(run, image, nullptr, "the active layer");
  for (const SnapshotInfo& info : run.must(image.snapshots(true), "snapshots")) {
    const auto view = run.must(image.view(info.name), "view");
    content.snapshots[info.name] = read_stamps(run, image, view.get(), "snapshot " + info.name);
  }
  return content;
}

std::string difference(const World& world, const Content& content) {
  for (const auto& [name, stamps] : world.snapshots) {
    const auto found = content.snapshots.find(name);
    if (found == content.snapshots.end()) return "snapshot " + name + " is missing";
    if (found->second != stamps) return "snapshot " + name + " has changed";
  }
  for (const auto& [name, stamps] : content.snapshots)
    if (!world.snapshots.contains(name)) return "there is a snapshot too many, " + name;
  if (content.active.size() != world.active.size()) return "the size is wrong";
  for (size_t i = 0; i < content.active.size(); i++)
    if (!may_hold(world.active[i], content.active[i]))
      return "sector " + std::to_string(i) + " holds stamp " + std::to_string(content.active[i]) +
             " instead of " + std::to_string(*world.active[i].rbegin());
  return "nothing";
}

Result<void> write_sectors(Image* image, Content* content, uint64_t first, uint64_t count,
                           Run* run) {
  std::vector<uint8_t> bytes(count * kSector);
  const uint64_t stamp = ++run->stamps;
  for (uint64_t i = 0; i < count; i++) {
    fill_sector(stamp, first + i, bytes.data() + i * kSector);
    content->active[first + i] = stamp;
  }
  return with_fetches(*run, image,
                      [&] { return image->write(first * kSector, bytes.data(), bytes.size()); });
}

}  // namespace crash
