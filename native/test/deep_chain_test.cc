// A snapshot on many others does not make the next reads look at all of their tables again; a deletion among them does, and either way
// each layer's bytes are seen.
#include <string>
#include <vector>

#include "../engine/file.h"
#include "check.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kLayers = 60;

class CountingReads : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t, const void*) override {
    if (operation == FileOperation::kRead) reads++;
    return 0;
  }
  uint64_t reads = 0;
};

}  // namespace

int main() {
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
  // How many reads of the file it takes to see everything; what is seen is what was written.
  const auto look = [&] {
    const uint64_t before = counting.reads;
    std::vector<uint8_t> found(model.size());
    CHECK(MUST(image->read(nullptr, 0, found.data(), found.size())) == found.size());
    CHECK(found == model);
    return counting.reads - before;
  };
  for (uint64_t layer = 0; layer < kLayers; layer++) {
    write(layer, static_cast<uint8_t>(layer + 1));
    write(kLayers, static_cast<uint8_t>(layer + 1));  // hidden by the next layer's
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
