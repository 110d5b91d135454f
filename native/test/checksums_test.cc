// Checksums of frozen layers: a scrub finds every byte that changes on the disk, and no reader gets
// it. Operations that move blocks between layers, or release them, lose no data because of
// checksums, and give no damaged data a right checksum.
#include "engine/format/checksums.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/check/scrub.h"

using namespace pcow;

namespace {

constexpr uint64_t kSize = uint64_t{1} << 20;

std::unique_ptr<Image> open_image(const std::string& path, bool write = true) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

struct Sample {
  explicit Sample(uint32_t block_size) : block(block_size) {
    CreateOptions options;
    options.size = kSize;
    options.block_size = block_size;
    MUST(create_image(path, options));
    image = open_image(path);
  }
  ~Sample() {
    image.reset();
    const CheckReport report = MUST(check_image(path, {}, nullptr));
    for (const Finding& finding : report.findings) fprintf(stderr, "%s\n", finding.message.c_str());
    CHECK(report.damages + report.leaks == 0);
  }

  void reopen() {
    MUST(image->close());
    image = open_image(path);
  }
  void put(uint64_t offset, size_t length, char value) {
    const std::vector<char> bytes(length, value);
    MUST(image->write(offset, bytes.data(), length));
  }
  // The file offset of what a snapshot reads at `offset`.
  uint64_t place(const std::string& snapshot, uint64_t offset) {
    const auto view = MUST(image->view(snapshot));
    for (const MapExtent& extent : MUST(image->map(view.get(), 0, {})).extents)
      if (extent.kind == ExtentKind::kData && offset - extent.offset < extent.length)
        return extent.file_offset + offset - extent.offset;
    CHECK(false);
    return 0;
  }
  // A byte changes on the disk. The page cache serves as the disk here; the image is opened again,
  // because blocks are verified only once.
  uint64_t damage(uint64_t at) {
    MUST(image->close());
    const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
    CHECK(descriptor >= 0);
    char byte;
    CHECK(pread(descriptor, &byte, 1, static_cast<off_t>(at)) == 1);
    byte ^= 4;
    CHECK(pwrite(descriptor, &byte, 1, static_cast<off_t>(at)) == 1);
    close(descriptor);
    image = open_image(path);
    return at;
  }
  Result<char> at(const std::string& snapshot, uint64_t offset) {
    const auto view = snapshot.empty() ? nullptr : MUST(image->view(snapshot));
    char byte;
    auto count = image->read(view.get(), offset, &byte, 1);
    if (!count) return count.error();
    CHECK(*count == 1);
    return byte;
  }
  // Of all layers, with a new reader.
  ScrubReport scrub() { return MUST(open_image(path, false)->scrub(nullptr)); }
  uint64_t missing() {
    uint64_t bytes = 0;
    for (const ScrubbedLayer& layer : scrub().layers) bytes += layer.missing;
    return bytes;
  }

  const uint32_t block;
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  std::unique_ptr<Image> image;
};

// One bad byte: its name and offset are reported, and no reader gets it. Everything else can be
// read.
void finds_damage(uint32_t block_size) {
  Sample sample(block_size);
  const uint64_t block = sample.block;
  sample.put(0, 6 * block, '1');
  sample.put(8 * block, 4096, '1');  // one sub-block
  MUST(sample.image->snapshot("one"));
  CHECK(sample.scrub().damages == 0 && sample.missing() == 6 * block + 4096);
  MUST(sample.image->add_checksums(nullptr));
  CHECK(sample.missing() == 0 && sample.scrub().verified == 6 * block + 4096);
  sample.put(5 * block, block, '2');

  const uint64_t place = sample.damage(sample.place("one", 2 * block + 100));
  const ScrubReport report = sample.scrub();
  CHECK(report.damages == 1 && report.findings.size() == 1);
  const Finding& found = report.findings.front();
  CHECK(found.snapshot == "one" && found.structure == "block");
  CHECK(found.offset == 2 * block && found.length == block &&
        found.file_offset == place / block * block);
  CHECK(report.verified == 5 * block + 4096);
  CHECK(MUST(check_image(sample.path, {}, nullptr)).damages == 0);

  for (const std::string snapshot : {"one", ""}) {
    FAILS(sample.at(snapshot, 2 * block + 100), Code::kCorrupt);
    CHECK(sample.at(snapshot, 3 * block - 1).error().err == EIO);
    CHECK(MUST(sample.at(snapshot, 2 * block - 1)) == '1' &&
          MUST(sample.at(snapshot, 3 * block)) == '1');
    CHECK(MUST(sample.at(snapshot, 8 * block)) == '1' && MUST(sample.at(snapshot, 9 * block)) == 0);
  }
  CHECK(MUST(sample.at("", 5 * block)) == '2');
  // A guest's memory does not get it, either.
  FaultWork work;
  FAILS(sample.image->make_writable(2 * block, {}, &work), Code::kCorrupt);
  FAILS(sample.image->complete_chunk(0, &work), Code::kCorrupt);
  MUST(sample.image->make_writable(3 * block, {}, &work));
  // An image that stands on it does not read it, and data that is written over it is sound.
  const std::string clone = sample.directory / "clone.pcow";
  CreateOptions options;
  options.has_base = true;
  options.base.path = sample.path;
  options.base.snapshot = "one";
  MUST(create_image(clone, options));
  {
    auto child = open_image(clone);
    char byte;
    FAILS(child->read(nullptr, 2 * block, &byte, 1), Code::kCorrupt);
    MUST(child->read(nullptr, 3 * block, &byte, 1));
    FAILS(child->rebase({}, false, nullptr), Code::kCorrupt);
    const std::vector<char> bytes(block, 'x');
    MUST(child->write(2 * block, bytes.data(), block));
    MUST(child->rebase({}, false, nullptr));
    MUST(child->read(nullptr, 2 * block + 100, &byte, 1));
    CHECK(byte == 'x');
  }
  // Without checksums the data is read as it lies on the disk.
  MUST(sample.image->remove_checksums());
  CHECK(MUST(sample.at("one", 2 * block + 100)) == ('1' ^ 4));
  CHECK(sample.scrub().verified == 0);
}

// A table entry that leads elsewhere counts as damage of that block, too.
void finds_wrong_entries() {
  Sample sample(16384);
  sample.put(0, 16384, '1');
  sample.put(16384, 16384, '2');
  MUST(sample.image->snapshot("one"));
  MUST(sample.image->add_checksums(nullptr));
  const uint64_t first = sample.place("one", 0);
  MUST(sample.image->close());
  const int descriptor = open(sample.path.c_str(), O_RDWR | O_CLOEXEC);
  const std::vector<char> other(16384, '2');
  CHECK(pwrite(descriptor, other.data(), other.size(), static_cast<off_t>(first)) == 16384);
  close(descriptor);
  sample.image = open_image(sample.path);
  FAILS(sample.at("one", 0), Code::kCorrupt);
  CHECK(MUST(sample.at("one", 16384)) == '2');
  CHECK(sample.scrub().damages == 1);
}

// The heir of a deleted snapshot keeps its checksums. What it takes over is verified, and gets
// checksums when they are next made.
void goes_through_merges() {
  Sample sample(65536);
  sample.put(0, 4 * 65536, '1');
  MUST(sample.image->snapshot("one"));
  sample.put(65536, 4096, '2');  // a partial block: the merge copies the rest of it
  sample.put(5 * 65536, 65536, '2');
  MUST(sample.image->snapshot("two"));
  MUST(sample.image->add_checksums(nullptr));
  sample.put(3 * 65536, 65536, '3');
  MUST(sample.image->remove("one", nullptr));
  CHECK(sample.scrub().damages == 0 && sample.missing() == 4 * 65536 - 4096);
  CHECK(MUST(sample.at("two", 0)) == '1' && MUST(sample.at("two", 65536)) == '2');
  MUST(sample.image->add_checksums(nullptr));
  CHECK(sample.missing() == 0 && sample.scrub().verified == 5 * 65536);

  // Damaged data never counts as sound: not after a merge, and not when checksums are completed.
  MUST(sample.image->snapshot("three"));
  sample.damage(sample.place("two", 100));
  sample.damage(sample.place("two", 65536 + 5000));
  FAILS(sample.image->remove("two", nullptr), Code::kCorrupt);
  FAILS(sample.at("three", 0), Code::kCorrupt);
  FAILS(sample.at("", 65536), Code::kCorrupt);
  sample.reopen();
  FAILS(sample.at("three", 0), Code::kCorrupt);
  MUST(sample.image->add_checksums(nullptr));
  CHECK(sample.scrub().damages == 2);
  MUST(sample.image->remove_checksums());
  sample.reopen();
  CHECK(MUST(sample.at("three", 100)) == ('1' ^ 4));
}

// After the active layer has overwritten the damage, the deletion can be finished.
void is_written_over() {
  Sample sample(16384);
  sample.put(0, 65536, '1');
  MUST(sample.image->snapshot("one"));
  MUST(sample.image->add_checksums(nullptr));
  sample.damage(sample.place("one", 0));
  FAILS(sample.image->remove("one", nullptr), Code::kCorrupt);
  FAILS(sample.at("", 5000), Code::kCorrupt);
  sample.put(0, 16384, '2');
  CHECK(MUST(sample.at("", 5000)) == '2');
  sample.reopen();
  CHECK(sample.scrub().layers.empty());
  CHECK(MUST(sample.at("", 5000)) == '2' && MUST(sample.at("", 16384)) == '1');
}

// A part of a block has a checksum and is damaged: completing the checksums does not change that.
void keeps_the_old_checksum() {
  Sample sample(65536);
  sample.put(0, 65536, '1');
  MUST(sample.image->snapshot("one"));
  sample.put(0, 4096, '2');
  sample.put(65536, 4096, '2');
  MUST(sample.image->snapshot("two"));
  MUST(sample.image->add_checksums(nullptr));
  MUST(sample.image->remove("one", nullptr));
  CHECK(sample.missing() == 65536 - 4096);
  sample.damage(sample.place("two", 10));
  MUST(sample.image->add_checksums(nullptr));
  FAILS(sample.at("two", 10), Code::kCorrupt);
  CHECK(sample.scrub().damages == 1 && sample.missing() == 65536 - 4096);
}

// A block that the disk has lost is not compacted away as one of zeros. A block that held zeros is,
// and can still be verified.
void survives_compacting() {
  Sample sample(16384);
  sample.put(0, 16384, '1');
  sample.put(16384, 16384, 0);
  MUST(sample.image->snapshot("one"));
  MUST(sample.image->add_checksums(nullptr));
  const uint64_t place = sample.place("one", 0);
  MUST(sample.image->close());
  const int descriptor = open(sample.path.c_str(), O_RDWR | O_CLOEXEC);
  const std::vector<char> zeros(16384);
  CHECK(pwrite(descriptor, zeros.data(), zeros.size(), static_cast<off_t>(place)) == 16384);
  close(descriptor);
  sample.image = open_image(sample.path);
  MUST(sample.image->compact(nullptr));
  FAILS(sample.at("one", 0), Code::kCorrupt);
  CHECK(MUST(sample.at("one", 16384)) == 0);
  CHECK(sample.scrub().damages == 1 && sample.scrub().verified == 16384);
  MUST(sample.image->add_checksums(nullptr));
  CHECK(sample.scrub().damages == 1);
}

// A damaged page of checksums does not make data unreadable. A repair drops the page, and it can be
// made again.
void outlives_damaged_pages() {
  Sample sample(16384);
  sample.put(0, 65536, '1');
  MUST(sample.image->snapshot("one"));
  MUST(sample.image->add_checksums(nullptr));
  MUST(sample.image->close());
  const Superblock superblock =
      MUST(read_superblock(*MUST(File::open(sample.path, false, nullptr))));
  CHECK(superblock.read_only_compatible == kLayerChecksums);
  const LayerDirectory directory =
      MUST(read_layer_directory(*MUST(File::open(sample.path, false, nullptr)), superblock));
  const uint64_t place = uint64_t{directory.find("one")->checksums} << 14;
  sample.image = open_image(sample.path);
  sample.damage(place + 1030);
  CHECK(MUST(sample.at("one", 0)) == '1');
  const ScrubReport report = sample.scrub();
  CHECK(report.damages == 1 && report.findings.front().structure == "checksums");
  CHECK(report.findings.front().file_offset == place && report.verified == 0);
  CHECK(MUST(check_image(sample.path, {}, nullptr)).damages == 1);
  MUST(sample.image->close());
  CheckOptions mending;
  mending.repair = true;
  const CheckReport repaired = MUST(check_image(sample.path, mending, nullptr));
  CHECK(repaired.damages == 0 && repaired.repaired == 1);
  sample.image = open_image(sample.path);
  CHECK(sample.scrub().damages == 0 && sample.missing() == 65536);
  MUST(sample.image->add_checksums(nullptr));
  CHECK(sample.missing() == 0);
  MUST(sample.image->remove_checksums());
  MUST(sample.image->close());
  CHECK(
      MUST(read_superblock(*MUST(File::open(sample.path, false, nullptr)))).read_only_compatible ==
      0);
}

void can_be_cancelled() {
  Sample sample(4096);
  sample.put(0, kSize, '1');
  MUST(sample.image->snapshot("one"));
  FAILS(sample.image->add_checksums([](uint64_t, uint64_t) { return false; }), Code::kCancelled);
  CHECK(sample.missing() == kSize);
  MUST(sample.image->add_checksums(nullptr));
  FAILS(sample.image->scrub([](uint64_t, uint64_t) { return false; }), Code::kCancelled);
}

// Readers and a scrub continue while checksums are made and removed, and layers come and go: no
// damage is reported.
void goes_side_by_side() {
  Sample sample(4096);
  sample.put(0, kSize, '1');
  MUST(sample.image->snapshot("ground"));
  std::atomic<bool> done{false};
  std::thread scrubbing([&] {
    auto reader = open_image(sample.path, false);
    while (!done)
      CHECK(MUST(reader->scrub(nullptr)).damages == 0 &&
            MUST(sample.image->scrub(nullptr)).damages == 0);
  });
  std::thread making([&] {
    while (!done) {
      MUST(sample.image->add_checksums(nullptr));
      MUST(sample.image->remove_checksums());
    }
  });
  std::thread reading([&] {
    std::vector<char> bytes(kSize);
    const auto view = MUST(sample.image->view("ground"));
    while (!done) {
      MUST(sample.image->read(view.get(), 0, bytes.data(), bytes.size()));
      CHECK(bytes == std::vector<char>(kSize, '1'));
    }
  });
  const int rounds = effort(100, 20, 10);
  for (int i = 0; i < rounds; i++) {
    sample.put(static_cast<uint64_t>(i) % 200 * 4096, 12288, 'a');
    MUST(sample.image->snapshot("s"));
    sample.put(static_cast<uint64_t>(i) % 150 * 4096, 4096, 'b');
    MUST(sample.image->remove("s", nullptr));
    if (i % 8 == 0) MUST(sample.image->compact(nullptr));
  }
  done = true;
  for (std::thread* thread : {&scrubbing, &making, &reading}) thread->join();
}

// Closing does not wait until all checksums are made, and leaves nothing unfinished behind.
void ends_with_the_image() {
  Sample sample(4096);
  sample.put(0, kSize, '1');
  MUST(sample.image->snapshot("one"));
  std::atomic<bool> begun{false};
  std::thread making([&] {
    const auto wait = [&](uint64_t, uint64_t) {
      begun = true;
      std::this_thread::yield();
      return true;
    };
    while (sample.image->add_checksums(wait) && sample.image->remove_checksums()) continue;
  });
  while (!begun) std::this_thread::yield();
  MUST(sample.image->close());
  making.join();
}

}  // namespace

int main() {
  for (const uint32_t block_size : {4096u, 16384u, 65536u}) finds_damage(block_size);
  finds_wrong_entries();
  goes_through_merges();
  is_written_over();
  keeps_the_old_checksum();
  survives_compacting();
  outlives_damaged_pages();
  can_be_cancelled();
  goes_side_by_side();
  ends_with_the_image();
  return 0;
}
