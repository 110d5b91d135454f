// The check finds every kind of damage, and says where it is; a repair mends it, and keeps what it
// cannot place. The damage is made on purpose, one kind at a time, and at random, bit by bit: every
// flipped bit is found, or the content of the image is right except for this bit.
#include "engine/check/check.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "check.h"
#include "check_sample.h"
#include "engine/format/bytes.h"
#include "engine/format/entry.h"
#include "engine/format/superblock.h"

using namespace pcow;
using namespace check_sample;

namespace {

struct Expected {
  std::string structure;
  uint64_t place;
  std::string words;
};

// Damages a copy of the sample. The check must report the place and not change the file, and the
// repair must mend it. Afterwards every view reads as before, except for the blocks `lost`.
CheckReport damage(const TemporaryDirectory& directory, const Sample& good, const std::string& what,
                   const std::function<void(Bytes*)>& harm, const Expected& expected,
                   const std::vector<uint64_t>& lost = {}) {
  const std::string path = directory / "image.pcow";
  Bytes bytes = good.bytes;
  harm(&bytes);
  save(path, bytes);
  const CheckReport found = check(path);
  if (!has(found, expected.structure, expected.place, expected.words))
    fail(what + " is not found", found);
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
    if (now.at(name) != expected_bytes)
      fail(what + ": the content has changed in \"" + name + "\"", mended);
  }
  all_losses_are_told(what, mended, good.contents, now);
  open_image(path, true);
  return mended;
}

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
  if (const CheckReport report = check(directory / "image.pcow");
      !report.findings.empty() || report.snapshots != 2)
    fail("the sample is not sound", report);

  // Superblocks: each slot, with one wrong bit, with many, and empty.
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

  // The layer directory: one bit is corrected.
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
  // The sub-block that the entry no longer holds is kept.
  CHECK(load(lost).size() == kBlock && load(lost)[4096] == '1');
  damage(directory, good, "the same, mended anew", set_word(place, word & ~uint64_t{2}),
         {"entry", place, "marks sub-blocks as durable"}, {0});
  CHECK(load(lost).size() == kBlock);
  damage(directory, good, "written bits that are not durable",
         set_word(place, word & ~uint64_t{0x20000}), {"entry", place, "not durable"});
  unlink(lost.c_str());
  damage(directory, good, "an index with nothing written",
         set_word(place, word & ~uint64_t{0xffffffff}), {"entry", place, "holds nothing"}, {0});
  CHECK(load(lost).size() == kBlock && load(lost)[0] == '1');

  // Entries: indexes. The block itself, which nothing names any more, is kept.
  const auto pointing_at = [&](uint64_t index) { return (word & 0xffffffff) | index << 32; };
  for (const auto& [index, words] : std::map<uint64_t, std::string>{
           {0x3fffffff, "beyond its end"},
           {good.layer("two").table_offset / kBlock, "the table of snapshot two"},
           {good.layer("").table_offset / kBlock, "the table of the active layer"},
           {directory_at / kBlock, "where the layer directory is"}}) {
    unlink(lost.c_str());
    damage(directory, good, "a pointer at " + std::to_string(index),
           set_word(place, pointing_at(index)), {"entry", place, words}, {0});
    const Bytes kept = load(lost);
    CHECK(kept.size() >= kBlock && kept[kept.size() - kBlock] == '1');
    CHECK(load(directory / "image.pcow.lost.index").size() > 50);
  }
  damage(directory, good, "a pointer at the superblocks", set_word(place, pointing_at(0)),
         {"free space", uint64_t{entry.index} * kBlock, "belongs to no layer"}, {0});

  // A block that two entries name: both read the same as before.
  const uint64_t second = good.entry_place("two", 10);
  const CheckReport shared =
      damage(directory, good, "a block that two entries name", set_word(second, word),
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
  const CheckReport stray =
      damage(directory, good, "bytes in free space", flip(free_block * kBlock + 77, 1),
             {"free space", free_block * kBlock, "belongs to no layer"});
  CHECK(stray.repaired == 1);
}

// What cannot be mended is reported nevertheless, and nothing is written.
void what_cannot_be_mended() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  const auto stays = [&](const std::string& what, const std::function<void(Bytes*)>& harm,
                         const Expected& expected) {
    Bytes bytes = good.bytes;
    harm(&bytes);
    save(path, bytes);
    const CheckReport report = check(path, true);
    if (!has(report, expected.structure, expected.place, expected.words) || !report.damages ||
        report.repaired)
      fail(what + " is not found", report);
    if (load(path) != bytes) fail(what + ": the repair wrote", report);
  };
  stays("no slot", [](Bytes* bytes) { memset(bytes->data(), 0, 2 * kPageSize); },
        {"superblock", kPageSize, "is empty"});
  stays("a short file", [](Bytes* bytes) { bytes->resize(5000); },
        {"file", 5000, "only 5000 bytes"});
  const uint64_t directory_at = good.superblock.directory_offset;
  stays("a directory that is gone",
        [&](Bytes* bytes) { memset(bytes->data() + directory_at, 0, 64); },
        {"directory", directory_at, "no magic number"});

  // A base that is absent, or another image.
  save(path, good.bytes);
  CHECK(rename((directory / "base.pcow").c_str(), (directory / "gone.pcow").c_str()) == 0);
  CheckReport report = check(path);
  if (!has(report, "base", 0, "does not exist") || report.damages != 1)
    fail("a missing base is not found", report);
  CreateOptions options;
  options.size = kImage;
  options.block_size = kBlock;
  MUST(create_image(directory / "base.pcow", options));
  report = check(path);
  if (!has(report, "base", 0, "another image with uuid") || report.damages != 1)
    fail("another base is not found", report);

  save(path, Bytes(100000, 'x'));
  report = check(path);
  if (report.damages != 2 || !report.uuid.empty())
    fail("what is no image is not called so", report);
}

// What a killed writer, or a host crash, has left is no damage, and a repair recovers it.
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
  if (!report.findings.empty() || report.clean || report.crashed || report.dropped)
    fail("a killed writer", report);

  Bytes bytes = load(path);
  for (const uint64_t slot : {0, 1}) {
    Superblock superblock = MUST(Superblock::decode(bytes.data() + slot * kPageSize, path));
    superblock.boot[3] ^= 1;
    memcpy(bytes.data() + slot * kPageSize, superblock.encode().data(), kPageSize);
  }
  save(path, bytes);
  report = check(path);
  if (!report.findings.empty() || !report.crashed || report.dropped != kBlock)
    fail("a crashed host", report);
  report = check(path, true);
  if (!report.findings.empty() || !report.clean) fail("a crashed host is not recovered", report);
  CHECK(contents_of(path) == good.contents);
}

// An interrupted merge: parent and heir name the same blocks, and this is no damage.
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

// While a writer writes, takes snapshots and deletes them, the check raises no false alarm.
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
  if (const CheckReport report = check(path); !report.findings.empty())
    fail("at rest again", report);
}

size_t differing_bytes(const std::vector<char>& a, const std::vector<char>& b, uint64_t* first,
                       uint64_t* last) {
  size_t count = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) {
    if (a[i] == b[i]) continue;
    if (!count++) *first = i;
    *last = i;
  }
  return count;
}

// Any single bit of the file: it is found, or all content is right except for this bit. The repair
// mends it, and at most one block reads differently than before.
void random_flips() {
  TemporaryDirectory directory("/dev/shm");
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  std::mt19937_64 random(test_seed());
  // Most bytes of the file are data: half of the flips go into the structures.
  std::vector<std::pair<uint64_t, uint64_t>> structures = {
      {0, 2 * kPageSize}, {good.superblock.directory_offset, good.superblock.directory_length}};
  for (const Layer& layer : good.directory.layers)
    structures.emplace_back(layer.table_offset, 25 * 8);
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

// Random bytes: the check ends, and so does the repair.
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
      for (uint64_t at = start; at < start + length; at++)
        bytes[at] = static_cast<uint8_t>(random());
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
  unclean();
  interrupted_merge();
  random_flips();
  random_garbage();
  return 0;
}
