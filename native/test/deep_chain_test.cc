// After a snapshot on many others, the next reads do not look at all of their tables again; after a
// deletion among them they do. In both cases every layer's bytes can be read, also those of the
// farthest layer that a chain can have. No chain can become longer.
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "engine/disk/file.h"
#include "engine/format/entry.h"
#include "engine/format/geometry.h"
#include "engine/format/layer_directory.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kLayers = 60;

class CountingReads : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (operation == FileOperation::kRead) reads++;
    return 0;
  }
  uint64_t reads = 0;
};

// An image with `count` frozen layers, one on the other. The oldest holds `block`, full of `value`.
void make_deep(const std::string& path, uint8_t number, uint64_t count,
               const std::optional<BaseReference>& base, uint64_t block, char value) {
  constexpr uint64_t kRecord = 64 + 8;
  constexpr uint64_t kDirectoryAt = 2;  // blocks
  const uint64_t data_at = kDirectoryAt + 1 + (count + 1) * kRecord / kBlock + 1;
  LayerDirectory directory;
  for (uint64_t id = 1; id <= count + 1; id++) {
    Layer layer;
    layer.id = directory.next_id++;
    layer.parent = id - 1;
    layer.size = kMinImageSize;
    layer.table_offset = (data_at + id) * kBlock;
    layer.table_length = kBlock;
    if (id <= count) layer.name = "s" + std::to_string(id);
    directory.layers.push_back(layer);
  }
  directory.active = count + 1;
  Superblock superblock;
  superblock.uuid[0] = number;
  superblock.block_shift = kMinBlockShift;
  superblock.base = base;
  superblock.sealed = count;
  superblock.directory_offset = kDirectoryAt * kBlock;
  const std::vector<uint8_t> bytes = directory.encode(superblock.uuid);
  superblock.directory_length = bytes.size();
  CHECK(kDirectoryAt * kBlock + bytes.size() <= data_at * kBlock);
  auto file = MUST(File::create(path, nullptr));
  MUST(file->resize((data_at + count + 2) * kBlock));
  MUST(file->write(superblock.directory_offset, bytes.data(), bytes.size()));
  const std::string data(kBlock, value);
  MUST(file->write(data_at * kBlock, data.data(), kBlock));
  const uint64_t word = Entry{static_cast<uint32_t>(data_at), 1, 1}.pack();
  MUST(file->write((data_at + 1) * kBlock + block * 8, &word, sizeof word));
  for (int slot = 0; slot < 2; slot++, superblock.generation++)
    MUST(write_superblock(*file, superblock));
}

char byte_of(Image* image, uint64_t block) {
  char found = '?';
  CHECK(MUST(image->read(nullptr, block * kBlock, &found, 1)) == 1);
  return found;
}

void longest_chain() {
  const TemporaryDirectory directory;
  constexpr uint64_t kMost = kMaxLayers - 1;  // frozen layers of an image
  const auto path = [&](const char* name) { return directory / (std::string(name) + ".pcow"); };
  BaseReference on_base;
  on_base.path = "base.pcow";
  on_base.uuid[0] = 1;
  on_base.layer = kMost;
  make_deep(path("base"), 1, kMost, std::nullopt, 0, 'B');
  make_deep(path("top"), 2, kMost, on_base, 1, 'T');
  OpenOptions options;
  options.write = true;
  auto top = MUST(Image::open(path("top"), options));
  // The block of the base has the same offset in its file as the image's own block in the image's
  // file.
  CHECK(byte_of(top.get(), 0) == 'B' && byte_of(top.get(), 1) == 'T' && byte_of(top.get(), 2) == 0);
  FaultWork work;
  MUST(top->make_writable(0, {}, &work));
  CHECK(work.copied && byte_of(top.get(), 0) == 'B');
  FAILS(top->snapshot("more"), Code::kLimit);
  MUST(top->close());

  // No image is made that could not be opened.
  const BaseSpec too_deep = {path("top"), "s" + std::to_string(kMost), 0};
  CreateOptions create;
  create.has_base = true;
  create.base = too_deep;
  FAILS(create_image(path("third"), create), Code::kLimit);
  create.base = {path("top"), "s1", 0};
  MUST(create_image(path("third"), create));
  auto third = MUST(Image::open(path("third"), options));
  CHECK(byte_of(third.get(), 0) == 'B' && byte_of(third.get(), 1) == 'T');
  FAILS(third->set_base(too_deep, true), Code::kLimit);
  FAILS(third->rebase(too_deep, true, nullptr), Code::kLimit);
  CHECK(byte_of(third.get(), 0) == 'B');
  MUST(third->close());
}

}  // namespace

int main() {
  longest_chain();
  const TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = 2 * kLayers * kBlock;
  create.block_size = kBlock;
  MUST(create_image(path, create));
  CountingReads counting;
  OpenOptions options;
  options.write = true;
  options.observer = &counting;
  auto image = MUST(Image::open(path, options));
  std::vector<uint8_t> model(create.size);
  const auto write = [&](uint64_t block, uint8_t value) {
    const std::vector<uint8_t> bytes(kBlock, value);
    MUST(image->write(block * kBlock, bytes.data(), kBlock));
    std::fill_n(model.begin() + static_cast<ptrdiff_t>(block * kBlock), kBlock, value);
  };
  // The number of file reads until everything has been seen. What is read must be what was written.
  const auto look = [&] {
    const uint64_t before = counting.reads;
    std::vector<uint8_t> found(model.size());
    CHECK(MUST(image->read(nullptr, 0, found.data(), found.size())) == found.size());
    CHECK(found == model);
    return counting.reads - before;
  };
  for (uint64_t layer = 0; layer < kLayers; layer++) {
    write(layer, static_cast<uint8_t>(layer + 1));
    write(kLayers, static_cast<uint8_t>(layer + 1));  // hidden by the next layer's data
    MUST(image->snapshot("s" + std::to_string(layer)));
  }
  look();
  const uint64_t resolved = look();
  write(3, 200);
  MUST(image->discard(5 * kBlock, kBlock));
  std::fill_n(model.begin() + 5 * kBlock, kBlock, 0);
  MUST(image->snapshot("newest"));
  CHECK(look() <= resolved + 3);

  write(7, 201);
  MUST(image->remove("s30", nullptr));
  CHECK(look() > resolved + kLayers / 2);
  MUST(image->rollback("s20"));
  for (uint64_t block = 0; block < model.size() / kBlock; block++) {
    const bool written = block <= 20 || block == kLayers;
    const auto value = static_cast<uint8_t>(!written ? 0 : block == kLayers ? 21 : block + 1);
    std::fill_n(model.begin() + static_cast<ptrdiff_t>(block * kBlock), kBlock, value);
  }
  look();
  MUST(image->close());
  return 0;
}
