// Lazy images: what is remote cannot be read, is never taken for zeros, and becomes readable when it
// is filled, for every reader. What needs remote bytes is refused, and nothing is lost.
#include <atomic>
#include <thread>

#include "check.h"
#include "engine/check/check.h"
#include "engine/format/entry.h"
#include "engine/format/layer_directory.h"
#include "engine/format/superblock.h"
#include "second_reader.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 65536;
constexpr uint64_t kSub = 4096;
const std::vector<uint8_t> kSource = {'f', 'r', 'o', 'm', ' ', 'a', 'f', 'a', 'r'};

std::unique_ptr<Image> open_image(const std::string& path, bool write) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

// What block `block` of the lazy image holds: another byte in each sub-block.
std::vector<char> content_of(uint64_t block) {
  std::vector<char> bytes(kBlock);
  for (size_t i = 0; i < bytes.size(); i++)
    bytes[i] = static_cast<char>('a' + (block * 3 + i / kSub) % 26);
  return bytes;
}

// Snapshot "v1" holds blocks 0 to 5: 0 and 1 here, 2 to 5 remote (of block 3 only the first two
// sub-blocks). Everything else is zeros. Block 6 is zero here.
struct Lazy {
  explicit Lazy(const TemporaryDirectory& directory, const std::string& name = "lazy.pcow")
      : path(directory / name) {
    CreateOptions options;
    options.size = 64 * kBlock;
    MUST(create_image(path, options));
    image = open_image(path, true);
    FAILS(image->mark_remote({{2, 0xffff}}), Code::kInvalid);  // it has no source yet
    MUST(image->set_source(kSource));
    for (const uint64_t block : {0, 1})
      MUST(image->write(block * kBlock, content_of(block).data(), kBlock));
    MUST(image->mark_remote({{2, 0xffff}, {3, 3}, {4, 0xffff}, {5, 0xffff}}));
    FAILS(image->mark_remote({{4, 1}}), Code::kExists);
    FAILS(image->mark_remote({{64, 1}}), Code::kInvalid);
    MUST(image->snapshot("v1"));
    layer = MUST(image->layer_id("v1"));
  }
  uint64_t remote() const { return MUST(image->remote_bytes()) / kSub; }
  Result<size_t> read(uint64_t block, uint64_t length = kBlock) const {
    bytes.resize(length);
    return image->read(nullptr, block * kBlock, bytes.data(), length);
  }

  const std::string path;
  std::unique_ptr<Image> image;
  uint64_t layer = 0;
  mutable std::vector<char> bytes;
};

void must_read(const Image& image, uint64_t block, const std::vector<char>& wanted) {
  std::vector<char> bytes(wanted.size());
  CHECK(MUST(image.read(nullptr, block * kBlock, bytes.data(), bytes.size())) == bytes.size());
  CHECK(bytes == wanted);
}

void must_lack(const Image& image, uint64_t block, uint64_t layer) {
  std::vector<char> bytes(kSub);
  auto read = image.read(nullptr, block * kBlock, bytes.data(), bytes.size());
  CHECK(!read && read.error().code == Code::kRemote && read.error().remote);
  CHECK(read.error().remote->block == block && read.error().remote->layer == layer);
  CHECK(read.error().remote->uuid.size() == 36);
}

void must_be_sound(const std::string& path, uint64_t remote) {
  const CheckReport report = MUST(check_image(path, {}, nullptr));
  for (const Finding& finding : report.findings)
    fprintf(stderr, "%s: %s\n", path.c_str(), finding.message.c_str());
  CHECK(report.damages == 0 && report.leaks == 0 && report.remote == remote);
}

void remote_bytes_are_missing_until_they_are_filled() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  CHECK(lazy.remote() == 16 + 2 + 16 + 16);
  CHECK(*MUST(lazy.image->source()) == kSource);
  must_read(*lazy.image, 0, content_of(0));
  must_lack(*lazy.image, 2, lazy.layer);
  must_lack(*lazy.image, 3, lazy.layer);
  // Beside remote sub-blocks of the same block.
  std::vector<char> bytes(kSub);
  MUST(lazy.image->read(nullptr, 3 * kBlock + 2 * kSub, bytes.data(), kSub));
  CHECK(bytes == std::vector<char>(kSub));

  // Readers that remember the entries as remote: of another opening, and on an image above.
  const auto reader = open_image(lazy.path, false);
  must_lack(*reader, 2, lazy.layer);
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  const auto top = open_image(directory / "top.pcow", true);
  must_lack(*top, 2, lazy.layer);
  must_lack(*top, 3, lazy.layer);

  // Only what is remote is filled; the rest of the data is ignored.
  std::vector<char> data;
  for (uint64_t block = 1; block < 4; block++) {
    const auto of_block = content_of(block);
    data.insert(data.end(), of_block.begin(), of_block.end());
  }
  std::fill(data.begin(), data.begin() + kBlock, 'X');
  FAILS(lazy.image->fill(lazy.layer, 1, data.data(), data.size() - 1), Code::kInvalid);
  FAILS(lazy.image->fill(lazy.layer, 62, data.data(), data.size()), Code::kInvalid);
  FAILS(lazy.image->fill(lazy.layer + 1, 1, data.data(), data.size()), Code::kNotFound);
  FAILS(reader->fill(lazy.layer, 1, data.data(), data.size()), Code::kReadOnly);
  CHECK(MUST(lazy.image->fill(lazy.layer, 1, data.data(), data.size())) == 2);
  CHECK(MUST(lazy.image->fill(lazy.layer, 1, data.data(), data.size())) == 0);
  auto third = content_of(3);
  std::fill(third.begin() + 2 * kSub, third.end(), '\0');
  for (const Image* image : {lazy.image.get(), reader.get(), top.get()}) {
    must_read(*image, 1, content_of(1));
    must_read(*image, 2, content_of(2));
    must_read(*image, 3, third);
    must_lack(*image, 4, lazy.layer);
  }
  CHECK(lazy.remote() == 32);
  auto batch = MUST(lazy.image->remote_blocks(lazy.layer, 0));
  CHECK(batch.blocks.size() == 2 && batch.blocks[0].block == 4 && batch.blocks[0].mask == 0xffff);
  CHECK(!batch.next);
  CHECK(MUST(lazy.image->remote_blocks(lazy.layer, 5)).blocks.size() == 1);

  // It is an ordinary image only when everything is here.
  FAILS(lazy.image->set_source(std::nullopt), Code::kRemote);
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 32 * kSub);
  lazy.image = open_image(lazy.path, true);
  must_lack(*lazy.image, 4, lazy.layer);
  for (const uint64_t block : {4, 5})
    CHECK(MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock)) == 1);
  MUST(lazy.image->sync());
  // Complete, with its source, and then without.
  SecondReader second;
  Bytes all(64 * kBlock);
  for (const uint64_t block : {0, 1, 2, 4, 5}) {
    const auto of_block = content_of(block);
    std::copy(of_block.begin(), of_block.end(),
              all.begin() + static_cast<ptrdiff_t>(block * kBlock));
  }
  std::copy(third.begin(), third.end(), all.begin() + 3 * kBlock);
  second.compare(lazy.path, all, {{"v1", all}});
  MUST(lazy.image->set_source(std::nullopt));
  CHECK(!lazy.image->info().lazy && !MUST(lazy.image->source()));
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 0);
  second.compare(lazy.path, all, {{"v1", all}});
  CHECK(MUST(read_superblock(**File::open(lazy.path, false, nullptr))).incompatible == 0);
  must_read(*reader, 5, content_of(5));
  must_read(*top, 4, content_of(4));
}

void writes_over_remote_bytes() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  std::vector<char> bytes(kSub, 'w');
  // A whole sub-block needs nothing of what is below; a part does.
  MUST(lazy.image->write(4 * kBlock, bytes.data(), kSub));
  FAILS(lazy.image->write(4 * kBlock + kSub + 1, bytes.data(), 10), Code::kRemote);
  must_lack(*lazy.image, 5, lazy.layer);
  MUST(lazy.image->discard(5 * kBlock, kBlock));
  must_read(*lazy.image, 5, std::vector<char>(kBlock));
  FaultWork work;
  FAILS(lazy.image->make_writable(2 * kBlock, {}, &work), Code::kRemote);
  FAILS(lazy.image->make_writable(4 * kBlock + 3 * kSub, {}, &work), Code::kRemote);
  FAILS(lazy.image->complete_chunk(0, &work), Code::kRemote);
  // A fault is not made to wait by neighbours that are remote.
  CHECK(MUST(lazy.image->make_writable(1 * kBlock, {kLargestRun, true}, &work)).length > 0);
  for (const uint64_t block : {2, 4})
    MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock));
  CHECK(MUST(lazy.image->make_writable(2 * kBlock, {}, &work)).length > 0);
  auto wanted = content_of(4);
  std::fill_n(wanted.begin(), kSub, 'w');
  must_read(*lazy.image, 4, wanted);

  // The map says that it is data, and that it cannot be read.
  auto view = MUST(lazy.image->view("v1"));
  bool remote = false;
  for (const MapExtent& extent : MUST(lazy.image->map(view.get(), 0, {})).extents) {
    if (extent.offset <= 3 * kBlock && 3 * kBlock < extent.offset + extent.length) {
      remote = true;
      CHECK(extent.remote && extent.kind == ExtentKind::kData && extent.length == 2 * kSub);
    }
  }
  CHECK(remote);
}

// What needs remote bytes, or would take them from the layer for which the source names them, is
// refused, and nothing has changed.
void changes_that_need_remote_bytes() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  MUST(lazy.image->write(7 * kBlock, content_of(7).data(), kBlock));
  MUST(lazy.image->snapshot("v2"));
  FAILS(lazy.image->remove("v1", nullptr), Code::kRemote);
  CHECK(MUST(lazy.image->snapshot_names()).size() == 2);
  MUST(lazy.image->remove("v2", nullptr));
  MUST(lazy.image->compact(nullptr));
  MUST(lazy.image->add_checksums(nullptr));
  CreateOptions empty;
  empty.size = 64 * kBlock;
  MUST(create_image(directory / "other.pcow", empty));
  MUST(open_image(directory / "other.pcow", true)->snapshot("v1"));
  FAILS(lazy.image->set_base({directory / "other.pcow", "v1", 0}, true), Code::kRemote);
  // The base differs where this image holds everything, so no bytes are needed.
  MUST(lazy.image->rebase({directory / "other.pcow", "v1", 0}, true, nullptr));
  MUST(lazy.image->rebase({}, false, nullptr));
  MUST(lazy.image->resize(65 * kBlock));
  CHECK(lazy.remote() == 50);
  must_lack(*lazy.image, 2, lazy.layer);
  must_read(*lazy.image, 1, content_of(1));

  // An image on it. Its own content moves freely; that of the base does not.
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  const auto top = open_image(directory / "top.pcow", true);
  MUST(top->write(8 * kBlock, content_of(8).data(), kBlock));
  FAILS(top->rebase({}, false, nullptr), Code::kRemote);
  FAILS(top->rebase({directory / "other.pcow", "v1", 0}, true, nullptr), Code::kRemote);
  MUST(top->rebase({lazy.path, "v1", 0}, true, nullptr));
  must_read(*top, 8, content_of(8));
  must_lack(*top, 2, lazy.layer);
  MUST(top->commit_into(lazy.image.get(), "v3", false, nullptr));
  must_read(*top, 8, content_of(8));
  must_lack(*top, 2, lazy.layer);
  for (const uint64_t block : {2, 3, 4, 5})
    MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock));
  MUST(top->rebase({}, false, nullptr));
  must_read(*top, 2, content_of(2));
  MUST(lazy.image->remove("v1", nullptr));
  must_read(*top, 4, content_of(4));
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 0);
}

// A layer that is dropped while it is filled keeps nothing in use.
void fills_beside_other_threads() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  std::vector<RemoteEntry> entries;
  for (uint32_t block = 8; block < 60; block++) entries.push_back({block, 0xffff});
  MUST(lazy.image->mark_remote(entries));
  MUST(lazy.image->snapshot("v2"));
  const uint64_t layer = MUST(lazy.image->layer_id("v2"));
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    std::vector<char> bytes(kBlock);
    while (!done) {
      for (uint64_t block = 8; block < 60; block++) {
        auto read = lazy.image->read(nullptr, block * kBlock, bytes.data(), kBlock);
        CHECK(read ? bytes == content_of(block) : read.error().code == Code::kRemote);
      }
    }
  });
  // Two fill the same blocks.
  for (int number = 0; number < 2; number++) {
    threads.emplace_back([&] {
      for (uint64_t block = 8; block < 40; block++)
        MUST(lazy.image->fill(layer, block, content_of(block).data(), kBlock));
    });
  }
  for (int round = 0; round < 3; round++) {
    MUST(lazy.image->snapshot("s" + std::to_string(round)));
    MUST(lazy.image->sync());
  }
  for (size_t i = 1; i < threads.size(); i++) threads[i].join();
  done = true;
  threads[0].join();
  for (uint64_t block = 8; block < 40; block++) must_read(*lazy.image, block, content_of(block));

  for (int round = 0; round < 3; round++)
    MUST(lazy.image->remove("s" + std::to_string(round), nullptr));
  MUST(lazy.image->rollback("v1"));
  std::thread filling([&] {
    for (uint64_t block = 40; block < 60; block++) {
      auto filled = lazy.image->fill(layer, block, content_of(block).data(), kBlock);
      CHECK(filled || filled.error().code == Code::kNotFound);
    }
  });
  MUST(lazy.image->remove("v2", nullptr));
  filling.join();
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 50 * kSub);
}

// What is given back is remote for every reader, its space is free, and it can be filled again.
// What the source does not have stays.
void giving_back() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  for (const uint64_t block : {2, 3, 4, 5})
    MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock));
  auto third = content_of(3);
  std::fill(third.begin() + 2 * kSub, third.end(), '\0');
  MUST(lazy.image->write(9 * kBlock, content_of(9).data(), kBlock));
  MUST(lazy.image->snapshot("v2"));
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  const auto top = open_image(directory / "top.pcow", true);
  const auto reader = open_image(lazy.path, false);
  for (const Image* image : {lazy.image.get(), reader.get(), top.get()}) {
    must_read(*image, 2, content_of(2));
    must_read(*image, 3, third);
  }
  CHECK(lazy.image->take_uses(lazy.layer, 2, 2) && !lazy.image->take_uses(lazy.layer, 2, 2));
  must_read(*top, 3, third);
  CHECK(!lazy.image->take_uses(lazy.layer, 2, 1) && lazy.image->take_uses(lazy.layer, 2, 4));

  const uint64_t before = lazy.image->info().disk_use;
  // Block 1 was never remote; of block 3 there is less.
  const auto given = MUST(lazy.image->give_back(
      lazy.layer, {{2, 0xffff}, {3, 0xffff}, {3, 3}, {4, 0xffff}, {7, 0xffff}, {1000, 0xffff}}));
  CHECK((given == std::vector<bool>{true, false, true, true, false, false}));
  CHECK(MUST(lazy.image->give_back(lazy.layer, {{4, 0xffff}})) == std::vector<bool>{false});
  CHECK(MUST(lazy.image->give_back(lazy.layer + 100, {{5, 0xffff}})) == std::vector<bool>{false});
  CHECK(lazy.remote() == 34);
  CHECK(lazy.image->info().disk_use + 34 * kSub <= before);
  for (const Image* image : {lazy.image.get(), reader.get(), top.get()}) {
    for (const uint64_t block : {2, 3, 4}) must_lack(*image, block, lazy.layer);
    must_read(*image, 5, content_of(5));
    must_read(*image, 1, content_of(1));
  }
  FAILS(reader->give_back(lazy.layer, {{5, 0xffff}}), Code::kReadOnly);
  // Its checksums outlive it.
  MUST(lazy.image->add_checksums(nullptr));
  CHECK(MUST(lazy.image->give_back(lazy.layer, {{5, 0xffff}})) == std::vector<bool>{true});
  CHECK(MUST(lazy.image->scrub(nullptr)).damages == 0);
  must_lack(*top, 5, lazy.layer);
  // A layer that is not a snapshot gives nothing back.
  for (const uint64_t block : {2, 3, 4, 5})
    CHECK(MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock)) == 1);
  CHECK(MUST(lazy.image->scrub(nullptr)).damages == 0);
  for (const Image* image : {lazy.image.get(), reader.get(), top.get()}) {
    must_read(*image, 3, third);
    must_read(*image, 5, content_of(5));
  }
  MUST(lazy.image->snapshot("v3"));
  MUST(lazy.image->remove("v1", nullptr));
  CHECK(MUST(lazy.image->give_back(lazy.layer, {{2, 0xffff}})) == std::vector<bool>{false});
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 0);
}

// While others read and fill, whatever they read is right.
void giving_back_beside_readers() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  const auto top = open_image(directory / "top.pcow", true);
  const auto second = open_image(lazy.path, false);
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (const Image* image : {lazy.image.get(), top.get(), second.get()}) {
    readers.emplace_back([&, image] {
      std::vector<char> bytes(kBlock);
      while (!done) {
        for (const uint64_t block : {2, 4, 5}) {
          auto read = image->read(nullptr, block * kBlock, bytes.data(), kBlock);
          CHECK(read ? bytes == content_of(block) : read.error().code == Code::kRemote);
        }
      }
    });
  }
  for (int round = 0; round < effort(200, 50, 20); round++) {
    for (const uint64_t block : {2, 4, 5}) {
      MUST(lazy.image->fill(lazy.layer, block, content_of(block).data(), kBlock));
      if (round % 3 == 0) MUST(lazy.image->write(20 * kBlock, content_of(20).data(), kBlock));
    }
    MUST(lazy.image->give_back(lazy.layer, {{2, 0xffff}, {4, 0xffff}, {5, 0xffff}}));
    if (round % 3 == 0) MUST(lazy.image->discard(20 * kBlock, kBlock));
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  MUST(lazy.image->close());
  must_be_sound(lazy.path, 50 * kSub);
}

// A part of a block of a base is discarded: no block is needed, and the bytes neither.
void discards_of_parts() {
  const TemporaryDirectory directory;
  Lazy lazy(directory);
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  const auto top = open_image(directory / "top.pcow", true);
  const uint64_t before = top->info().disk_use;
  for (const uint64_t block : {0, 4}) MUST(top->discard(block * kBlock + kSub, 3 * kSub));
  CHECK(top->info().disk_use < before + kBlock);
  CHECK(MUST(top->held(kSub)).length == 0);
  auto wanted = content_of(0);
  std::fill(wanted.begin() + kSub, wanted.begin() + 4 * kSub, '\0');
  must_read(*top, 0, wanted);
  // What lies around it, and a sub-block that is discarded in part, keep their bytes.
  MUST(top->discard(5 * kSub + 100, kSub));
  std::fill(wanted.begin() + 5 * kSub + 100, wanted.begin() + 6 * kSub + 100, '\0');
  must_read(*top, 0, wanted);
  MUST(top->discard(7 * kSub, kSub));
  std::fill(wanted.begin() + 7 * kSub, wanted.begin() + 8 * kSub, '\0');
  must_read(*top, 0, wanted);
  MUST(top->close());
  must_be_sound(directory / "top.pcow", 0);
}

// Refuses operations of one kind.
class Refusing : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    return err && operation == refused ? err : 0;
  }
  FileOperation refused = FileOperation::kWrite;
  int err = 0;
};

// A fill that fails leaves the block remote, and no bytes behind.
void fills_that_fail() {
  for (const FileOperation operation :
       {FileOperation::kWrite, FileOperation::kAllocate, FileOperation::kSync}) {
    const TemporaryDirectory directory;
    Lazy lazy(directory);
    MUST(lazy.image->close());
    Refusing disk;
    OpenOptions options;
    options.write = true;
    options.observer = &disk;
    lazy.image = MUST(Image::open(lazy.path, options));
    disk.refused = operation;
    disk.err = operation == FileOperation::kSync ? EIO : ENOSPC;
    auto filled = lazy.image->fill(lazy.layer, 2, content_of(2).data(), kBlock);
    CHECK(!filled && filled.error().err == disk.err);
    must_lack(*lazy.image, 2, lazy.layer);
    disk.err = 0;
    if (operation == FileOperation::kSync) {
      // As after every failed sync, nothing counts as durable before the image is opened again.
      CHECK(!lazy.image->fill(lazy.layer, 2, content_of(2).data(), kBlock));
      CHECK(!lazy.image->close());
      lazy.image = MUST(Image::open(lazy.path, options));
      must_lack(*lazy.image, 2, lazy.layer);
    }
    CHECK(MUST(lazy.image->fill(lazy.layer, 2, content_of(2).data(), kBlock)) == 1);
    must_read(*lazy.image, 2, content_of(2));
    MUST(lazy.image->close());
    must_be_sound(lazy.path, 34 * kSub);
  }
}

void store_word(const std::string& path, uint64_t layer, uint64_t block, uint64_t word) {
  auto file = MUST(File::open(path, true, nullptr));
  const Superblock superblock = MUST(read_superblock(*file));
  const LayerDirectory directory = MUST(read_layer_directory(*file, superblock));
  MUST(file->write(directory.find(layer)->table_offset + block * 8, &word, sizeof word));
  MUST(file->sync());
}

uint64_t damages_of(const std::string& path) {
  return MUST(check_image(path, {}, nullptr)).damages;
}

void damage_is_found() {
  const TemporaryDirectory directory;
  const std::string ordinary = directory / "ordinary.pcow";
  CreateOptions options;
  options.size = 64 * kBlock;
  MUST(create_image(ordinary, options));
  const uint64_t remote = Entry{0, 3, 3, true}.pack();
  // An entry of an image that is not lazy.
  store_word(ordinary, 1, 4, remote);
  CHECK(damages_of(ordinary) == 1);
  std::vector<char> bytes(kSub);
  OpenOptions reading;
  FAILS(MUST(Image::open(ordinary, reading))->read(nullptr, 4 * kBlock, bytes.data(), kSub),
        Code::kCorrupt);

  Lazy lazy(directory);
  MUST(lazy.image->close());
  for (const uint64_t word :
       {remote | 1, remote | uint64_t{1} << 63, remote & ~uint64_t{0xffff0000}, (uint64_t{1} << 62),
        remote | uint64_t{20} << 32}) {
    if (word == remote) continue;
    store_word(lazy.path, lazy.layer, 9, word);
    CHECK(damages_of(lazy.path) == 1);
  }
  store_word(lazy.path, lazy.layer, 9, remote);
  must_be_sound(lazy.path, 52 * kSub);
  // An unsound entry that is remote stays so after a repair.
  store_word(lazy.path, lazy.layer, 9, remote & ~uint64_t{0x10000});
  CheckOptions repair;
  repair.repair = true;
  CHECK(MUST(check_image(lazy.path, repair, nullptr)).damages == 0);
  must_be_sound(lazy.path, 52 * kSub);
  // A source that was changed.
  const Superblock superblock = MUST(read_superblock(*MUST(File::open(lazy.path, false, nullptr))));
  {
    auto file = MUST(File::open(lazy.path, true, nullptr));
    MUST(file->write(superblock.source_offset + 33, "x", 1));
  }
  CHECK(damages_of(lazy.path) == 1);
  FAILS(open_image(lazy.path, false)->source(), Code::kCorrupt);
}

}  // namespace

int main() {
  remote_bytes_are_missing_until_they_are_filled();
  writes_over_remote_bytes();
  changes_that_need_remote_bytes();
  fills_beside_other_threads();
  fills_that_fail();
  giving_back();
  giving_back_beside_readers();
  discards_of_parts();
  damage_is_found();
  return 0;
}
