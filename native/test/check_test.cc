// The check finds every kind of damage, and names its place; a repair mends it, and keeps what it cannot place. Damage is made
// on purpose, one kind at a time, and at random, bit by bit: whatever is flipped is found, or the image still is right.
#include "engine/check/check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"
#include "engine/format/entry.h"
#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"

using namespace pcow;

namespace {

constexpr uint32_t kBlock = 16384;
constexpr uint64_t kImage = 24 * kBlock + 4096;
using Contents = std::map<std::string, std::vector<char>>;  // of the active layer ("") and the snapshots

std::unique_ptr<Image> open_image(const std::string& path, bool write = false) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

void put(Image* image, uint64_t offset, size_t length, char value) {
  const std::vector<char> bytes(length, value);
  MUST(image->write(offset, bytes.data(), length));
}

Contents contents_of(const std::string& path) {
  auto image = open_image(path);
  Contents contents;
  contents[""].resize(image->size());
  CHECK(MUST(image->read(nullptr, 0, contents[""].data(), image->size())) == image->size());
  for (const SnapshotInfo& info : MUST(image->snapshots(false))) {
    const auto view = MUST(image->view(info.name));
    auto& bytes = contents[info.name];
    bytes.resize(image->view_size(*view));
    CHECK(MUST(image->read(view.get(), 0, bytes.data(), bytes.size())) == bytes.size());
  }
  return contents;
}

// Where its structures are, read apart from the engine's opening.
struct Sample {
  Bytes bytes;
  Contents contents;
  Superblock superblock;
  LayerDirectory directory;

  const Layer& layer(const std::string& name) const {
    return name.empty() ? directory.active_layer() : *directory.find(name);
  }
  uint64_t entry_place(const std::string& name, uint64_t block) const { return layer(name).table_offset + block * 8; }
  uint64_t slot() const { return superblock.generation & 1; }
};

Sample sample_of(const std::string& path) {
  Sample sample;
  sample.bytes = load(path);
  sample.contents = contents_of(path);
  const uint8_t* bytes = sample.bytes.data();
  const auto first = MUST(Superblock::decode(bytes, path));
  const auto second = MUST(Superblock::decode(bytes + kPageSize, path));
  sample.superblock = first.generation > second.generation ? first : second;
  const auto* start = bytes + sample.superblock.directory_offset;
  sample.directory = MUST(LayerDirectory::decode(Bytes(start, start + sample.superblock.directory_length),
                                                 sample.superblock, sample.bytes.size(), path));
  return sample;
}

// An image with a base, two snapshots, whole and partial blocks, and blocks that are zero over data.
Sample make_sample(const TemporaryDirectory& directory) {
  const std::string base = directory / "base.pcow";
  CreateOptions options;
  options.size = kImage;
  options.block_size = kBlock;
  MUST(create_image(base, options));
  auto image = open_image(base, true);
  put(image.get(), 0, 6 * kBlock, 'b');
  MUST(image->snapshot("ground"));
  MUST(image->close());
  options = {};
  options.has_base = true;
  options.base.path = base;
  options.base.snapshot = "ground";
  const std::string path = directory / "image.pcow";
  MUST(create_image(path, options));
  image = open_image(path, true);
  put(image.get(), 0, 2 * kBlock, '1');
  put(image.get(), 3 * kBlock + 4096, 8192, '1');
  MUST(image->snapshot("one"));
  put(image.get(), kBlock, 4096, '2');
  put(image.get(), 9 * kBlock, 2 * kBlock, '2');
  MUST(image->discard(2 * kBlock, kBlock));
  MUST(image->snapshot("two"));
  put(image.get(), 5 * kBlock, kBlock, '3');
  put(image.get(), 12 * kBlock, 4096, '3');
  MUST(image->close());
  return sample_of(path);
}

CheckReport check(const std::string& path, bool repair = false) {
  CheckOptions options;
  options.repair = repair;
  return MUST(check_image(path, options, nullptr));
}

[[noreturn]] void fail(const std::string& what, const CheckReport& report) {
  fprintf(stderr, "%s; the check says:\n", what.c_str());
  for (const Finding& finding : report.findings)
    fprintf(stderr, "  %d %s at %llu: %s%s\n", static_cast<int>(finding.severity), finding.structure.c_str(),
            static_cast<unsigned long long>(finding.file_offset), finding.message.c_str(),
            finding.repaired ? " (repaired)" : "");
  exit(1);
}

bool has(const CheckReport& report, const std::string& structure, uint64_t place, const std::string& words) {
  for (const Finding& finding : report.findings)
    if (finding.structure == structure && finding.file_offset == place &&
        finding.message.find(words) != std::string::npos)
      return true;
  return false;
}

// Whatever reads otherwise after a repair than it did before the damage is among what the repair says is lost, or may be; unless
// data had no place, which it says as well.
void all_losses_are_told(const std::string& what, const CheckReport& mended, const Contents& before,
                         const Contents& now) {
  if (mended.unplaced) return;
  for (const auto& [name, bytes] : before) {
    std::vector<bool> told(bytes.size());
    uint64_t total = 0;
    for (const Loss& loss : mended.losses) {
      uint64_t end = 0;
      for (const LostRange& range : loss.ranges) {
        if (range.offset < end || !range.length) fail(what + ": lost ranges overlap", mended);
        end = range.offset + range.length;
        total += range.length;
        if (loss.snapshot != name) continue;
        if (end > bytes.size()) fail(what + ": a lost range behind the end of \"" + name + "\"", mended);
        std::fill_n(told.begin() + static_cast<ptrdiff_t>(range.offset), range.length, true);
      }
      total -= loss.gone + loss.doubtful;
    }
    if (total) fail(what + ": the sums of what is lost are wrong", mended);
    for (size_t i = 0; i < bytes.size(); i++)
      if (bytes[i] != now.at(name)[i] && !told[i])
        fail(what + ": byte " + std::to_string(i) + " of \"" + name + "\" is lost, and not told", mended);
  }
}

const Loss* loss_of(const CheckReport& report, const std::string& snapshot) {
  for (const Loss& loss : report.losses)
    if (loss.snapshot == snapshot) return &loss;
  return nullptr;
}

struct Expected {
  std::string structure;
  uint64_t place;
  std::string words;
};

// Damages a copy of the sample; the check must name the place and leave the file alone, the repair must mend it.
// Afterwards every view reads as before, but for the blocks `lost`.
CheckReport damage(const TemporaryDirectory& directory, const Sample& good, const std::string& what,
                   const std::function<void(Bytes*)>& harm, const Expected& expected,
                   const std::vector<uint64_t>& lost = {}) {
  const std::string path = directory / "image.pcow";
  Bytes bytes = good.bytes;
  harm(&bytes);
  save(path, bytes);
  const CheckReport found = check(path);
  if (!has(found, expected.structure, expected.place, expected.words)) fail(what + " is not found", found);
  if (load(path) != bytes) fail(what + ": the check wrote to the image", found);
  const CheckReport mended = check(path, true);
  if (mended.damages || mended.leaks || !mended.repaired) fail(what + " is not mended", mended);
  const CheckReport again = check(path);
  if (again.damages || again.leaks) fail(what + " is not mended for good", again);
  const Contents now = contents_of(path);
  CHECK(now.size() == good.contents.size());
  for (const auto& [name, before] : good.contents) {
    std::vector<char> expected_bytes = before;
    for (const uint64_t block : lost)
      memcpy(expected_bytes.data() + block * kBlock, now.at(name).data() + block * kBlock, kBlock);
    if (now.at(name) != expected_bytes) fail(what + ": the content has changed in \"" + name + "\"", mended);
  }
  all_losses_are_told(what, mended, good.contents, now);
  open_image(path, true);
  return mended;
}

uint64_t word_at(const Bytes& bytes, uint64_t place) { return get_field<uint64_t>(bytes.data(), place); }

void each_kind_of_damage() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string lost = directory / "image.pcow.lost";
  const auto flip = [](uint64_t place, uint8_t bits) {
    return [place, bits](Bytes* bytes) { (*bytes)[place] ^= bits; };
  };
  const auto set_word = [](uint64_t place, uint64_t word) {
    return [place, word](Bytes* bytes) { put_field(bytes->data(), place, word); };
  };
  if (const CheckReport report = check(directory / "image.pcow"); !report.findings.empty() || report.snapshots != 2)
    fail("the sample is not sound", report);

  // Superblocks: either slot, one bit, many bits, nothing at all.
  for (const uint64_t slot : {0, 1}) {
    damage(directory, good, "a flipped bit in a slot", flip(slot * kPageSize + 45, 4),
           {"superblock", slot * kPageSize + 45, "one bit is wrong"});
    damage(directory, good, "a flipped bit in a slot's magic number", flip(slot * kPageSize + 1, 1),
           {"superblock", slot * kPageSize + 1, "one bit is wrong"});
  }
  const uint64_t other = 1 - good.slot();
  const auto wipe = [](uint64_t from, uint64_t length, uint8_t value) {
    return [=](Bytes* bytes) { memset(bytes->data() + from, value, length); };
  };
  damage(directory, good, "a wiped slot", wipe(other * kPageSize, kPageSize, 0),
         {"superblock", other * kPageSize, "is empty"});
  damage(directory, good, "a scribbled slot", wipe(other * kPageSize + 40, 100, 0x5a),
         {"superblock", other * kPageSize, "checksum is wrong"});
  damage(directory, good, "a slot without its magic number", wipe(other * kPageSize, 8, 'x'),
         {"superblock", other * kPageSize, "no magic number"});

  // The directory: one bit is put right.
  const uint64_t directory_at = good.superblock.directory_offset;
  damage(directory, good, "a flipped bit in the directory", flip(directory_at + 80, 0x10),
         {"directory", directory_at + 80, "one bit is wrong"});
  damage(directory, good, "a flipped bit in the directory's checksum", flip(directory_at + 9, 0x80),
         {"directory", directory_at + 9, "one bit is wrong"});

  // Entries: bits.
  const uint64_t place = good.entry_place("one", 0);
  const uint64_t word = word_at(good.bytes, place);
  const Entry entry = Entry::unpack(word);
  CHECK(entry.index && entry.written == 0xf);
  damage(directory, good, "a high bit of an entry", set_word(place, word | uint64_t{1} << 63),
         {"entry", place, "bits set that are always zero"});
  damage(directory, good, "bits over the sub-blocks", set_word(place, word | 0x00100010),
         {"entry", place, "sub-blocks that a block does not have"});
  unlink(lost.c_str());
  damage(directory, good, "durable bits too many", set_word(place, word & ~uint64_t{2}),
         {"entry", place, "marks sub-blocks as durable"}, {0});
  // The sub-block that the entry does not hold any more is kept.
  CHECK(load(lost).size() == kBlock && load(lost)[4096] == '1');
  damage(directory, good, "the same, mended anew", set_word(place, word & ~uint64_t{2}),
         {"entry", place, "marks sub-blocks as durable"}, {0});
  CHECK(load(lost).size() == kBlock);
  damage(directory, good, "written bits that are not durable", set_word(place, word & ~uint64_t{0x20000}),
         {"entry", place, "not durable"});
  unlink(lost.c_str());
  damage(directory, good, "an index with nothing written", set_word(place, word & ~uint64_t{0xffffffff}),
         {"entry", place, "holds nothing"}, {0});
  CHECK(load(lost).size() == kBlock && load(lost)[0] == '1');

  // Entries: places. The block itself, which nothing names any more, is kept.
  const auto pointing_at = [&](uint64_t index) { return (word & 0xffffffff) | index << 32; };
  for (const auto& [index, words] :
       std::map<uint64_t, std::string>{{0x3fffffff, "beyond its end"},
                                       {good.layer("two").table_offset / kBlock, "the table of snapshot two"},
                                       {good.layer("").table_offset / kBlock, "the table of the active layer"},
                                       {directory_at / kBlock, "where the layer directory is"}}) {
    unlink(lost.c_str());
    damage(directory, good, "a pointer at " + std::to_string(index), set_word(place, pointing_at(index)),
           {"entry", place, words}, {0});
    const Bytes kept = load(lost);
    CHECK(kept.size() >= kBlock && kept[kept.size() - kBlock] == '1');
    CHECK(load(directory / "image.pcow.lost.index").size() > 50);
  }
  damage(directory, good, "a pointer at the superblocks", set_word(place, pointing_at(0)),
         {"free space", uint64_t{entry.index} * kBlock, "belongs to no layer"}, {0});

  // A block with two owners: both go on reading it.
  const uint64_t second = good.entry_place("two", 10);
  const CheckReport shared = damage(directory, good, "a block that two entries name", set_word(second, word),
                                    {"entry", second, "and so does another entry"}, {10});
  CHECK(has(shared, "entry", place, "and so does another entry"));
  {
    const Contents now = contents_of(directory / "image.pcow");
    CHECK(memcmp(now.at("two").data() + 10 * kBlock, good.contents.at("one").data(), kBlock) == 0);
  }

  // Free space.
  const uint64_t free_block = [&] {
    for (uint64_t block = good.bytes.size() / kBlock - 1;; block--) {
      const Bytes bytes(good.bytes.begin() + static_cast<ptrdiff_t>(block * kBlock),
                        good.bytes.begin() + static_cast<ptrdiff_t>((block + 1) * kBlock));
      if (bytes == Bytes(kBlock)) return block;
    }
  }();
  const CheckReport stray = damage(directory, good, "bytes in free space", flip(free_block * kBlock + 77, 1),
                                   {"free space", free_block * kBlock, "belongs to no layer"});
  CHECK(stray.repaired == 1);
}

// What cannot be mended is named all the same, and nothing is written.
void what_cannot_be_mended() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  const auto stays = [&](const std::string& what, const std::function<void(Bytes*)>& harm, const Expected& expected) {
    Bytes bytes = good.bytes;
    harm(&bytes);
    save(path, bytes);
    const CheckReport report = check(path, true);
    if (!has(report, expected.structure, expected.place, expected.words) || !report.damages || report.repaired)
      fail(what + " is not found", report);
    if (load(path) != bytes) fail(what + ": the repair wrote", report);
  };
  stays("no slot", [](Bytes* bytes) { memset(bytes->data(), 0, 2 * kPageSize); },
        {"superblock", kPageSize, "is empty"});
  stays("a short file", [](Bytes* bytes) { bytes->resize(5000); }, {"file", 5000, "only 5000 bytes"});
  const uint64_t directory_at = good.superblock.directory_offset;
  stays("a directory that is gone", [&](Bytes* bytes) { memset(bytes->data() + directory_at, 0, 64); },
        {"directory", directory_at, "no magic number"});

  // A base that is gone, or another image.
  save(path, good.bytes);
  CHECK(rename((directory / "base.pcow").c_str(), (directory / "gone.pcow").c_str()) == 0);
  CheckReport report = check(path);
  if (!has(report, "base", 0, "does not exist") || report.damages != 1) fail("a missing base is not found", report);
  CreateOptions options;
  options.size = kImage;
  options.block_size = kBlock;
  MUST(create_image(directory / "base.pcow", options));
  report = check(path);
  if (!has(report, "base", 0, "another image with uuid") || report.damages != 1)
    fail("another base is not found", report);

  save(path, Bytes(100000, 'x'));
  report = check(path);
  if (report.damages != 2 || !report.uuid.empty()) fail("what is no image is not called so", report);
}

// The directory of the newest slot is gone, and that of the one before is still there.
void older_directory() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  Bytes bytes = good.bytes;
  const uint64_t end = round_up<uint64_t>(bytes.size(), kBlock);
  bytes.resize(end + kBlock);
  Superblock next = good.superblock;
  next.generation++;
  next.directory_offset = end;
  memset(bytes.data() + end, 0x77, good.superblock.directory_length);
  memcpy(bytes.data() + (next.generation & 1) * kPageSize, next.encode().data(), kPageSize);
  save(path, bytes);
  const CheckReport found = check(path);
  if (!has(found, "directory", end, "no magic number")) fail("a damaged directory is not found", found);
  const CheckReport mended = check(path, true);
  if (mended.damages || mended.generation <= next.generation) fail("the older directory is not used", mended);
  CHECK(contents_of(path) == good.contents);
  // What it knew and this one does not, nobody can tell.
  CHECK(mended.older_directory && loss_of(mended, "")->doubtful == good.contents.at("").size());
  // What was damaged is kept.
  CHECK(load(mended.lost_path)[0] == 0x77);
}

// A file that was cut off: what lies behind the cut is lost, the rest is there again.
void cut_short() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  // The active layer's table, moved to the end of the file, and cut off there.
  LayerDirectory moved = good.directory;
  Layer* layer = moved.find(moved.active);
  const uint64_t last_table = round_up<uint64_t>(good.bytes.size(), kBlock);
  Bytes bytes = good.bytes;
  bytes.resize(last_table);
  memset(bytes.data() + layer->table_offset, 0, layer->table_length);
  layer->table_offset = last_table;
  const Bytes encoded = moved.encode(good.superblock.uuid);
  memcpy(bytes.data() + good.superblock.directory_offset, encoded.data(), encoded.size());
  save(path, bytes);
  OpenOptions options;
  FAILS(Image::open(path, options), Code::kCorrupt);
  const CheckReport found = check(path);
  if (!has(found, "table", last_table, "beyond the end of the file")) fail("a cut is not found", found);
  const CheckReport mended = check(path, true);
  if (mended.damages) fail("a cut is not mended", mended);
  const Contents now = contents_of(path);
  CHECK(now.at("one") == good.contents.at("one") && now.at("two") == good.contents.at("two"));
  // What the active layer had is gone from it, but not from the host: it is among what nothing names.
  CHECK(load(mended.lost_path)[0] == '3');
  CHECK(mended.unplaced == 2);
  const Loss* lost = loss_of(mended, "");
  CHECK(lost && lost->doubtful == now.at("").size() && mended.losses.size() == 1);
}

// The blocks of snapshots were cut off: each view names what it misses, but for what lies in nearer layers.
void cut_data() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  // Whatever lies last in the file, a block of data of "two" by now, and what comes after it.
  const uint64_t place = good.entry_place("two", 9);
  const Entry entry = Entry::unpack(word_at(good.bytes, place));
  CHECK(entry.index);
  Bytes bytes = good.bytes;
  const uint64_t last = round_up<uint64_t>(bytes.size(), kBlock);
  bytes.resize(last + kBlock);
  memcpy(bytes.data() + last, bytes.data() + entry.index * uint64_t{kBlock}, kBlock);
  memset(bytes.data() + entry.index * uint64_t{kBlock}, 0, kBlock);
  put_field(bytes.data(), place, Entry{static_cast<uint32_t>(last / kBlock), entry.written, entry.durable}.pack());
  save(path, bytes);
  CHECK(contents_of(path) == good.contents);
  CHECK(check(path).findings.empty());
  // One sub-block of it was written anew since.
  auto image = open_image(path, true);
  put(image.get(), 9 * kBlock + 4096, 4096, '4');
  MUST(image->close());
  const Contents before = contents_of(path);
  CHECK(Entry::unpack(word_at(load(path), good.entry_place("", 9))).index != last / kBlock);
  bytes = load(path);
  // The new block lies behind it: what is cut is the old one, so that the file keeps its length.
  CHECK(truncate(path.c_str(), static_cast<off_t>(last)) == 0);
  const CheckReport mended = check(path, true);
  CHECK(!mended.damages);
  const Contents now = contents_of(path);
  all_losses_are_told("a cut", mended, before, now);
  const Loss* frozen = loss_of(mended, "two");
  CHECK(frozen && frozen->gone == kBlock && frozen->ranges.size() == 1 && frozen->ranges[0].offset == 9 * kBlock);
  CHECK(!loss_of(mended, "one"));
  CHECK(now.at("one") == before.at("one"));
}

// Left by a writer that was killed, or by a host that went down: no damage, and a repair recovers it.
void unclean() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    auto image = open_image(path, true);
    put(image.get(), 15 * kBlock, kBlock, 'k');
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CheckReport report = check(path);
  if (!report.findings.empty() || report.clean || report.crashed || report.dropped) fail("a killed writer", report);

  Bytes bytes = load(path);
  for (const uint64_t slot : {0, 1}) {
    Superblock superblock = MUST(Superblock::decode(bytes.data() + slot * kPageSize, path));
    superblock.boot[3] ^= 1;
    memcpy(bytes.data() + slot * kPageSize, superblock.encode().data(), kPageSize);
  }
  save(path, bytes);
  report = check(path);
  if (!report.findings.empty() || !report.crashed || report.dropped != kBlock) fail("a crashed host", report);
  report = check(path, true);
  if (!report.findings.empty() || !report.clean) fail("a crashed host is not recovered", report);
  CHECK(contents_of(path) == good.contents);
}

// A merge that was interrupted: parent and heir name the same blocks, and that is as it should be.
void interrupted_merge() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  constexpr uint64_t kChunk = 512 * 4096;
  CreateOptions options;
  options.size = 2 * kChunk;
  options.block_size = 4096;
  MUST(create_image(path, options));
  auto image = open_image(path, true);
  put(image.get(), 0, 8192, 'm');
  put(image.get(), kChunk, 8192, 'm');
  MUST(image->snapshot("gone"));
  FAILS(image->remove("gone", [](uint64_t done, uint64_t) { return done == 0; }), Code::kCancelled);
  CheckReport report = check(path);
  if (!report.findings.empty() || report.data != 4 * 4096) fail("during a merge", report);
  MUST(image->close());
  report = check(path);
  if (!report.findings.empty()) fail("an interrupted merge", report);
}

// Somebody writes, snapshots and deletes all the time: the check raises no false alarm.
void in_use() {
  TemporaryDirectory directory;
  make_sample(directory);
  const std::string path = directory / "image.pcow";
  auto image = open_image(path, true);
  std::atomic<bool> over{false};
  std::thread writer([&] {
    std::mt19937_64 random(7);
    for (int round = 0; !over; round++) {
      for (int i = 0; i < 20; i++) {
        const uint64_t block = random() % 24;
        if (random() % 3 == 0) {
          MUST(image->discard(block * kBlock, kBlock));
        } else {
          put(image.get(), block * kBlock, 4096, 'w');
        }
      }
      MUST(image->sync());
      const std::string name = "s" + std::to_string(round);
      MUST(image->snapshot(name));
      if (round > 2) MUST(image->remove("s" + std::to_string(round - 2), nullptr));
    }
  });
  for (int i = 0; i < 150; i++) {
    const CheckReport report = check(path);
    if (report.damages || report.leaks || !report.in_use) fail("a false alarm", report);
  }
  over = true;
  writer.join();
  CheckOptions repair;
  repair.repair = true;
  FAILS(check_image(path, repair, nullptr), Code::kLocked);
  MUST(image->close());
  if (const CheckReport report = check(path); !report.findings.empty()) fail("at rest again", report);
}

size_t differing_bytes(const std::vector<char>& a, const std::vector<char>& b, uint64_t* first, uint64_t* last) {
  size_t count = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) {
    if (a[i] == b[i]) continue;
    if (!count++) *first = i;
    *last = i;
  }
  return count;
}

// Any one bit of the file: it is found, or all content is right but for that very bit. The repair mends it, and no more than
// one block reads otherwise than before.
void random_flips() {
  TemporaryDirectory directory("/dev/shm");
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  std::mt19937_64 random(test_seed());
  // Most bytes of the file are data: half of the flips go into the structures.
  std::vector<std::pair<uint64_t, uint64_t>> structures = {
      {0, 2 * kPageSize}, {good.superblock.directory_offset, good.superblock.directory_length}};
  for (const Layer& layer : good.directory.layers) structures.emplace_back(layer.table_offset, 25 * 8);
  uint64_t found = 0;
  Bytes bytes = good.bytes;
  const int flips = effort(1500, 300, 60);
  for (int i = 0; i < flips; i++) {
    uint64_t at = random() % good.bytes.size();
    if (random() % 4) {
      const auto& [offset, length] = structures[random() % structures.size()];
      at = offset + random() % length;
    }
    bytes[at] ^= static_cast<uint8_t>(1u << random() % 8);
    save(path, bytes);
    bytes[at] = good.bytes[at];
    const std::string what = "a flipped bit in byte " + std::to_string(at);
    const CheckReport report = check(path);
    const bool sound = !report.damages && !report.leaks;
    found += !sound;
    CheckReport mended;
    if (!sound) {
      mended = check(path, true);
      if (mended.damages || mended.leaks) fail(what + " is not mended", mended);
    }
    const Contents now = contents_of(path);
    CHECK(now.size() == good.contents.size());
    if (!sound) all_losses_are_told(what, mended, good.contents, now);
    for (const auto& [name, before] : good.contents) {
      uint64_t first = 0, last = 0;
      const size_t count = differing_bytes(before, now.at(name), &first, &last);
      if (sound && count > 1) fail(what + " is not found", report);
      if (first / kBlock != last / kBlock) fail(what + " has cost more than a block", report);
    }
  }
  printf("%llu of %d flipped bits found\n", static_cast<unsigned long long>(found), flips);
  CHECK(found > static_cast<uint64_t>(flips) / 2);
}

// Whatever the bytes: the check ends, and so does the repair.
void random_garbage() {
  TemporaryDirectory directory("/dev/shm");
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  std::mt19937_64 random(test_seed());
  const int rounds = effort(300, 60, 12);
  for (int i = 0; i < rounds; i++) {
    Bytes bytes = good.bytes;
    const size_t places = 1 + random() % 6;
    for (size_t n = 0; n < places; n++) {
      const Layer& layer = good.directory.layers[random() % good.directory.layers.size()];
      const uint64_t start = random() % 2 ? layer.table_offset : random() % bytes.size();
      const uint64_t length = std::min<uint64_t>(1 + random() % 300, bytes.size() - start);
      for (uint64_t at = start; at < start + length; at++) bytes[at] = static_cast<uint8_t>(random());
    }
    if (random() % 8 == 0) bytes.resize(random() % bytes.size());
    save(path, bytes);
    for (const bool repair : {false, true}) {
      CheckOptions options;
      options.repair = repair;
      (void)check_image(path, options, nullptr);
    }
    auto report = check_image(path, {}, nullptr);
    OpenOptions writing;
    writing.write = true;
    if (report && !report->damages) MUST(MUST(Image::open(path, writing))->close());
    unlink((directory / "image.pcow.lost").c_str());
    unlink((directory / "image.pcow.lost.index").c_str());
  }
}

}  // namespace

int main() {
  in_use();
  if (kThreadsOnly) return 0;
  each_kind_of_damage();
  what_cannot_be_mended();
  older_directory();
  cut_short();
  cut_data();
  unclean();
  interrupted_merge();
  random_flips();
  random_garbage();
  return 0;
}
