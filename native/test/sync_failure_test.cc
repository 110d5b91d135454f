// Syncs that fail, write-backs that cannot begin, and waits for what is written back, each of a workload in turn, with every errno that
// a disk may give as its reason. The kernel tells of lost data once: from then on no sync succeeds, and no superblock is written, until
// the image is opened anew; then everything that was written is there.
#include <cstring>
#include <functional>
#include <vector>

#include "check.h"
#include "disk_errnos.h"
#include "engine/disk/file.h"

using namespace pcow;

namespace {

constexpr uint64_t kSize = 64 * 4096;

class FailingSync : public FileObserver {
 public:
  FailingSync(int good, int err) : left_(good), err_(err) {}
  bool failed() const { return failed_; }
  int superblocks_since() const { return superblocks_since_; }

  int before(FileOperation operation, const std::string&, uint64_t offset, uint64_t, const void*) override {
    if (operation == FileOperation::kWrite && offset < 8192 && failed_) superblocks_since_++;
    const bool tells = operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
    if (!tells || failed_ || left_-- > 0) return 0;  // only this one: the kernel forgets
    failed_ = true;
    return err_;
  }

 private:
  int left_;
  const int err_;
  bool failed_ = false;
  int superblocks_since_ = 0;
};

// false: the workload has fewer of them.
bool fail_sync(int number, int err) {
  TemporaryDirectory directory("/dev/shm");
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = kSize;
  create.block_size = 16384;
  MUST(create_image(path, create));
  std::vector<uint8_t> model(kSize);
  FailingSync failing(number, err);
  OpenOptions options;
  options.write = true;
  options.observer = &failing;
  auto opened = Image::open(path, options);
  if (failing.failed()) {
    CHECK(!opened && opened.error().err == err);
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
    CHECK(outcome.error().err == err);
    CHECK(outcome.error().message.find("opened anew") != std::string::npos);
    break;
  }
  if (!failing.failed()) return false;
  const auto failed_as = [&](const auto& result) { return !result && result.error().err == err; };
  CHECK(failed_as(image.sync()));
  CHECK(failed_as(image.snapshot("late")));
  CHECK(failed_as(image.resize(2 * kSize)));
  if (image.layer_id("a")) CHECK(failed_as(image.rollback("a")));
  if (image.layer_id("b")) CHECK(failed_as(image.remove("b", {})));
  CHECK(write(1000, 1000, 4));  // in place; it is not safe, and a sync says so
  CHECK(failed_as(image.sync()));
  CHECK(failed_as(image.close()));
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
  while (fail_sync(number, EIO)) number++;
  CHECK(number > 25);
  // The others differ in nothing but what they are called: each at another place.
  int next = 0;
  for (const int err : kDiskErrnos) {
    for (int step = 0; step < 4; step++) CHECK(fail_sync(next++ % number, err));
    next++;
  }
  printf("%d syncs and write-backs failed, one at a time\n", number);
  return 0;
}
