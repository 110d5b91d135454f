// Syncs that fail, write-backs that cannot begin, and waits for write-back, each of a workload in
// turn, with every errno that may be a disk's reason. The kernel reports lost data once: from then
// on no sync succeeds, and no superblock is written, until the image is opened again. Then
// everything that was written is there.
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

  int before(FileOperation operation, const std::string&, uint64_t offset, uint64_t,
             const void*) override {
    if (operation == FileOperation::kWrite && offset < 8192 && failed_) superblocks_since_++;
    const bool tells = operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
    if (!tells || failed_ || left_-- > 0) return 0;  // only one call fails: the kernel forgets
    failed_ = true;
    return err_;
  }

 private:
  int left_;
  const int err_;
  bool failed_ = false;
  int superblocks_since_ = 0;
};

// Interrupted before its first chunk: it waits for the next deletion, or until the image is next
// opened for writing.
Result<void> begin_to_remove(Image* image, const std::string& name) {
  auto outcome = image->remove(name, [](uint64_t, uint64_t) { return false; });
  return !outcome && outcome.error().code == Code::kCancelled ? Result<void>() : outcome;
}

void with_a_deletion_that_waits(const std::string& path, const OpenOptions& options) {
  auto image = MUST(Image::open(path, options));
  const std::vector<uint8_t> zeros(3 * 16384);
  MUST(image->write(0, zeros.data(), zeros.size()));
  MUST(image->snapshot("zeroth"));
  MUST(image->write(0, zeros.data(), zeros.size()));
  MUST(begin_to_remove(image.get(), "zeroth"));
  MUST(image->close());
}

Result<std::vector<uint8_t>> bytes_of(const Image& image, const std::string& snapshot) {
  auto view = image.view(snapshot);
  if (!view) return view.error();
  std::vector<uint8_t> bytes(kSize);
  auto count = image.read(view->get(), 0, bytes.data(), kSize);
  if (!count) return count.error();
  return bytes;
}

// Returns false if the workload has fewer of them.
bool fail_sync(int number, int err) {
  TemporaryDirectory directory("/dev/shm");
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = kSize;
  create.block_size = 16384;
  MUST(create_image(path, create));
  std::vector<uint8_t> model(kSize);
  std::vector<uint8_t> rolled_back;  // what a failed rollback may have led to
  OpenOptions options;
  options.write = true;
  with_a_deletion_that_waits(path, options);
  FailingSync failing(number, err);
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
      [&] { return write(0, 50000, 1); },
      [&] { return image.sync(); },
      [&] { return image.snapshot("a"); },
      [&] { return write(9000, 20000, 2); },
      [&] { return image.snapshot("b"); },
      [&] { return write(30000, 9000, 3); },
      [&] { return image.remove("a", {}); },
      [&] { return image.resize(kSize + 4096); },
      [&] { return image.sync(); },
      [&] { return image.snapshot("c"); },
      [&] { return write(0, 20000, 4); },
      [&] { return begin_to_remove(&image, "b"); },
      [&] { return image.remove("c", {}); },
      [&] { return image.snapshot("d"); },
      [&] { return image.snapshot("e"); },
      [&] { return write(5000, 60000, 5); },
      [&] { return image.snapshot("f"); },
      [&] { return begin_to_remove(&image, "d"); },
      [&] {
        rolled_back = MUST(bytes_of(image, "e"));
        auto outcome = image.rollback("e");
        if (outcome) model = std::exchange(rolled_back, {});
        return outcome;
      },
      [&] { return image.sync(); },
  };
  for (const auto& step : workload) {
    auto outcome = step();
    if (outcome.ok() == failing.failed()) fprintf(stderr, "errno %d at sync %d\n", err, number);
    CHECK(outcome.ok() == !failing.failed());
    if (outcome) continue;
    CHECK(outcome.error().err == err);
    CHECK(outcome.error().message.find("until the image is opened again") != std::string::npos);
    break;
  }
  if (!failing.failed()) return false;
  const auto failed_as = [&](const auto& result) { return !result && result.error().err == err; };
  CHECK(failed_as(image.sync()));
  CHECK(failed_as(image.snapshot("late")));
  CHECK(failed_as(image.resize(2 * kSize)));
  if (image.layer_id("a")) CHECK(failed_as(image.rollback("a")));
  if (image.layer_id("b")) CHECK(failed_as(image.remove("b", {})));
  CHECK(write(1000, 1000, 4));  // in place; it is not durable, and a sync says so
  CHECK(failed_as(image.sync()));
  CHECK(failed_as(image.close()));
  CHECK(failing.superblocks_since() == 0);

  options.observer = nullptr;
  auto again = MUST(Image::open(path, options));
  std::vector<uint8_t> found(kSize);
  CHECK(MUST(again->read(nullptr, 0, found.data(), kSize)) == kSize);
  CHECK(found == model || found == rolled_back);
  MUST(again->sync());
  MUST(again->snapshot("after"));
  MUST(again->close());
  return true;
}

}  // namespace

int main() {
  // EIO, and those that mean a full disk if anything but a sync fails: such a failure must not be
  // taken for a lack of space.
  int number = 0;
  while (fail_sync(number, EIO)) number++;
  CHECK(number > 50);
  for (const int err : {ENOSPC, EDQUOT, EFBIG})
    for (int i = 0; i < number; i++) CHECK(fail_sync(i, err));
  // The others differ only in their names: each is tried in another place.
  int next = 0;
  for (const int err : kDiskErrnos) {
    for (int step = 0; step < 4; step++) CHECK(fail_sync(next++ % number, err));
    next++;
  }
  printf("%d syncs and write-backs failed, one at a time\n", number);
  return 0;
}
