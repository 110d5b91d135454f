// Syncs that fail, and waits for what is written back, each of a workload in turn. The kernel tells of lost data once: from then on no sync succeeds, and no
// superblock is written, until the image is opened anew; then everything that was written is there.
#include <cstring>
#include <functional>
#include <vector>

#include "../engine/file.h"
#include "check.h"

using namespace pcow;

namespace {

constexpr uint64_t kSize = 64 * 4096;

class FailingSync : public FileObserver {
 public:
  explicit FailingSync(int good) : left_(good) {}
  bool failed() const { return failed_; }
  int superblocks_since() const { return superblocks_since_; }

  int before(FileOperation operation, const std::string&, uint64_t offset, uint64_t, const void*) override {
    if (operation == FileOperation::kWrite && offset < 8192 && failed_) superblocks_since_++;
    const bool tells = operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
    if (!tells || failed_ || left_-- > 0) return 0;  // only this one: the kernel forgets
    failed_ = true;
    return EIO;
  }

 private:
  int left_;
  bool failed_ = false;
  int superblocks_since_ = 0;
};

// false: the workload has fewer syncs.
bool fail_sync(int number) {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = kSize;
  create.block_size = 16384;
  MUST(create_image(path, create));
  std::vector<uint8_t> model(kSize);
  FailingSync failing(number);
  OpenOptions options;
  options.write = true;
  options.observer = &failing;
  auto opened = Image::open(path, options);
  if (failing.failed()) {
    CHECK(!opened && opened.error().code == Code::kIo);
    options.observer = nullptr;
    MUST(MUST(Image::open(path, options))->close());
    return true;
  }
  Image& image = **opened;
  const auto write = [&](uint64_t offset, uint64_t length, uint8_t value) -> Result<void> {
    const std::vector<uint8_t> bytes(length, value);
    PCOW_TRY(image.write(offset, bytes.data(), length));
    memset(model.data() + offset, value, length);
    return {};
  };
  const std::vector<std::function<Result<void>()>> workload = {
      [&] { return write(0, 50000, 1); },    [&] { return image.sync(); },
      [&] { return image.snapshot("a"); },   [&] { return write(9000, 20000, 2); },
      [&] { return image.snapshot("b"); },   [&] { return write(30000, 9000, 3); },
      [&] { return image.remove("a", {}); }, [&] { return image.resize(kSize + 4096); },
      [&] { return image.sync(); },
  };
  for (const auto& step : workload) {
    auto outcome = step();
    CHECK(outcome.ok() == !failing.failed());
    if (outcome) continue;
    CHECK(outcome.error().code == Code::kIo);
    CHECK(outcome.error().message.find("opened anew") != std::string::npos);
    break;
  }
  if (!failing.failed()) return false;
  FAILS(image.sync(), Code::kIo);
  FAILS(image.snapshot("late"), Code::kIo);
  FAILS(image.resize(2 * kSize), Code::kIo);
  if (image.layer_id("a")) FAILS(image.rollback("a"), Code::kIo);
  if (image.layer_id("b")) FAILS(image.remove("b", {}), Code::kIo);
  CHECK(write(1000, 1000, 4));  // in place; it is not safe, and a sync says so
  FAILS(image.sync(), Code::kIo);
  FAILS(image.close(), Code::kIo);
  CHECK(failing.superblocks_since() == 0);

  options.observer = nullptr;
  auto again = MUST(Image::open(path, options));
  std::vector<uint8_t> found(kSize);
  CHECK(MUST(again->read(nullptr, 0, found.data(), kSize)) == kSize);
  CHECK(found == model);
  MUST(again->sync());
  MUST(again->snapshot("after"));
  MUST(again->close());
  return true;
}

}  // namespace

int main() {
  int number = 0;
  while (fail_sync(number)) number++;
  CHECK(number > 15);
  printf("%d syncs failed, one at a time\n", number);
  return 0;
}
