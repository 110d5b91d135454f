// The reserve for operations that give space back (docs/format.md, "Reserve"): where it is found
// again, and how a full disk or a file that cannot grow affects it. Deletions and rollbacks on a
// disk that is really full: test/engine/full-disk.test.ts; power cuts: crash_test.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <vector>

#include "check.h"
#include "engine/check/check.h"
#include "engine/disk/file.h"
#include "engine/format/superblock.h"

using namespace pcow;

namespace {

constexpr uint32_t kBlock = 65536;
constexpr uint64_t kBlocks = 256;
constexpr uint32_t kReserve = 3;  // blocks

std::unique_ptr<Image> open_to_write(const std::string& path, FileObserver* observer = nullptr) {
  OpenOptions options;
  options.write = true;
  options.observer = observer;
  return MUST(Image::open(path, options));
}

void make(const std::string& path) {
  CreateOptions options;
  options.size = kBlocks * kBlock;
  options.block_size = kBlock;
  MUST(create_image(path, options));
}

Result<void> write(Image* image, uint64_t block, char value, size_t length = kBlock) {
  const std::vector<char> bytes(length, value);
  return image->write(block * kBlock, bytes.data(), length);
}

bool holds(const Image& image, uint64_t block, char value) {
  std::vector<char> found(kBlock);
  CHECK(MUST(image.read(nullptr, block * kBlock, found.data(), kBlock)) == kBlock);
  return found == std::vector<char>(kBlock, value);
}

Superblock newest_of(const std::string& path) {
  return MUST(read_superblock(*MUST(File::open(path, false, nullptr))));
}

uint64_t disk_use(const std::string& path) {
  struct stat now;
  CHECK(stat(path.c_str(), &now) == 0);
  return static_cast<uint64_t>(now.st_blocks) * 512;
}

void must_be_sound(const std::string& path) {
  CHECK(MUST(check_image(path, {}, nullptr)).findings.empty());
}

void stays_at_rest() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  MUST(open_to_write(path)->close());
  CHECK(newest_of(path).reserve_blocks == 0);  // it has no data, so nothing can be given back
  auto image = open_to_write(path);
  MUST(write(image.get(), 0, 'a'));
  MUST(image->close());
  const uint32_t place = newest_of(path).reserve;
  const uint64_t used = disk_use(path);
  CHECK(place != 0 && newest_of(path).reserve_blocks == kReserve);
  for (int times = 0; times < 3; times++) {
    image = open_to_write(path);
    MUST(write(image.get(), 0, 'b'));
    MUST(image->close());
    CHECK(newest_of(path).reserve == place && newest_of(path).reserve_blocks == kReserve &&
          disk_use(path) == used);
  }
  must_be_sound(path);
}

// For all other purposes the reserve is free space, so the hint may contain anything.
void hint_that_does_not_count() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  auto image = open_to_write(path);
  for (uint64_t block = 0; block < 8; block++)
    MUST(write(image.get(), block, static_cast<char>('a' + block)));
  MUST(image->close());
  CHECK(truncate(path.c_str(), int64_t{1} << 40) == 0);
  const uint32_t directory_block = static_cast<uint32_t>(newest_of(path).directory_offset / kBlock);
  const std::pair<uint32_t, uint32_t> hints[] = {{0, kReserve},      {directory_block, 1},
                                                 {1, UINT32_MAX},    {UINT32_MAX, UINT32_MAX},
                                                 {100000, 10000000}, {100000, 0}};
  for (const auto& [first, blocks] : hints) {
    Superblock superblock = newest_of(path);
    superblock.generation++;
    superblock.reserve = first;
    superblock.reserve_blocks = blocks;
    MUST(write_superblock(*MUST(File::open(path, true, nullptr)), superblock));
    image = open_to_write(path);
    for (uint64_t block = 0; block < 8; block++)
      CHECK(holds(*image, block, static_cast<char>('a' + block)));
    MUST(write(image.get(), 8, 'x'));
    MUST(image->discard(8 * kBlock, kBlock));
    MUST(image->close());
    CHECK(disk_use(path) < 32 * kBlock);
    must_be_sound(path);
  }
}

// A writer that was killed may have begun to spend it: what it wrote there, and no superblock
// names, is not part of a reserve.
void leftovers_in_it() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  auto image = open_to_write(path);
  MUST(write(image.get(), 0, 'a'));
  MUST(image->close());
  Superblock superblock = newest_of(path);
  superblock.generation++;
  superblock.clean = false;
  {
    auto file = MUST(File::open(path, true, nullptr));
    MUST(write_superblock(*file, superblock));
    MUST(file->write(uint64_t{superblock.reserve} * kBlock, "left over", 9));
  }
  image = open_to_write(path);
  MUST(image->close());
  CHECK(newest_of(path).reserve == superblock.reserve);
  must_be_sound(path);
}

// Otherwise each unclean end would leave one behind.
void is_not_made_again_by_each_killed_writer() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  uint64_t used = 0;
  for (int times = 0; times < 6; times++) {
    const pid_t child = fork();
    if (child == 0) {
      auto image = open_to_write(path);
      MUST(write(image.get(), 0, 'a'));
      _exit(0);
    }
    CHECK(child > 0 && waitpid(child, nullptr, 0) == child);
    if (times == 1) used = disk_use(path);
    if (times > 1) CHECK(disk_use(path) == used);
  }
}

// A disk that is full while `full` is set.
class FullDisk : public FileObserver {
 public:
  bool full = false;
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    return full && (operation == FileOperation::kAllocate || operation == FileOperation::kResize)
               ? ENOSPC
               : 0;
  }
};

// An operation that found no reserve does not keep others from space that becomes free later.
void is_spent_for_a_time_only() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  FullDisk disk;
  auto image = open_to_write(path);
  MUST(write(image.get(), 0, 'a'));
  MUST(image->snapshot("s"));
  MUST(image->close());
  disk.full = true;
  image = open_to_write(path, &disk);
  FAILS(image->discard(0, kBlock), Code::kNoSpace);
  FAILS(image->rollback("gone"), Code::kNotFound);
  FAILS(write(image.get(), 1, 'b'), Code::kNoSpace);
  disk.full = false;
  MUST(write(image.get(), 1, 'b'));
  MUST(image->discard(0, kBlock));
  MUST(image->rollback("s"));
  CHECK(holds(*image, 0, 'a') && holds(*image, 1, 0));
}

// After the second superblock of a deletion one read fails with ENOSPC, which a real disk would
// hardly return.
class LateFailure : public FileObserver {
 public:
  int superblocks = -1;  // how many are left until then; below 0: it never fails
  int before(FileOperation operation, const std::string&, uint64_t offset, uint64_t,
             const void*) override {
    if (operation == FileOperation::kWrite && offset < 8192 && superblocks > 0) superblocks--;
    if (operation != FileOperation::kRead || superblocks != 0) return 0;
    superblocks = -1;
    return ENOSPC;
  }
};

// The heir has taken the layer's blocks: a merge that has happened is not repeated after the layer
// is gone.
void is_no_reason_to_delete_twice() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  LateFailure failure;
  auto image = open_to_write(path, &failure);
  for (uint64_t block = 0; block < 8; block++) MUST(write(image.get(), block, 'a'));
  MUST(image->snapshot("s"));
  MUST(write(image.get(), 0, 'b'));
  failure.superblocks = 2;
  (void)image->remove("s", nullptr);
  CHECK(failure.superblocks == -1);
  for (int times = 0; times < 3; times++) MUST(image->sync());
  for (uint64_t block = 100; block < 120; block++) MUST(write(image.get(), block, 'c'));
  const auto intact = [&] {
    CHECK(holds(*image, 0, 'b'));
    for (uint64_t block = 1; block < 8; block++) CHECK(holds(*image, block, 'a'));
  };
  intact();
  MUST(image->close());
  image = open_to_write(path);
  intact();
}

// In a process of its own, because the limit is one of the process.
void in_a_file_that_cannot_grow(bool at_rest) {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  make(path);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child) {
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return must_be_sound(path);
  }
  auto image = open_to_write(path);
  for (uint64_t block = 0; block < 32; block++) MUST(write(image.get(), block, 'a'));
  MUST(image->snapshot("lower"));
  for (uint64_t block = 0; block < 32; block++) MUST(write(image.get(), block, 'b', 4096));
  MUST(image->snapshot("upper"));
  struct stat now;
  CHECK(stat(path.c_str(), &now) == 0);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {static_cast<rlim_t>(now.st_size), static_cast<rlim_t>(now.st_size)};
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  // Until no space is left.
  Result<void> written;
  for (int snapshots = 0; written; snapshots++) {
    for (uint64_t block = 0; block < kBlocks && written; block++)
      written = write(image.get(), block, 'c');
    if (written) written = image->snapshot("more" + std::to_string(snapshots));
    CHECK(snapshots < 100);
  }
  CHECK(written.error().code == Code::kTooLarge || written.error().code == Code::kNoSpace);
  if (at_rest) {
    MUST(image->close());
    image = open_to_write(path);
  }
  MUST(image->rollback("upper"));
  MUST(image->remove("lower", nullptr));
  const std::vector<SnapshotInfo> snapshots = MUST(image->snapshots(false));
  for (const SnapshotInfo& snapshot : snapshots)
    if (snapshot.name != "upper") MUST(image->remove(snapshot.name, nullptr));
  for (uint64_t block = 0; block < 32; block++) {
    std::vector<char> found(kBlock);
    CHECK(MUST(image->read(nullptr, block * kBlock, found.data(), kBlock)) == kBlock);
    for (size_t i = 0; i < kBlock; i++) CHECK(found[i] == (i < 4096 ? 'b' : 'a'));
  }
  for (int syncs = 0; syncs < 3; syncs++) MUST(image->sync());
  MUST(write(image.get(), 200, 'd'));
  MUST(image->close());
  _exit(0);
}

}  // namespace

int main() {
  stays_at_rest();
  hint_that_does_not_count();
  leftovers_in_it();
  is_not_made_again_by_each_killed_writer();
  is_spent_for_a_time_only();
  is_no_reason_to_delete_twice();
  for (const bool at_rest : {false, true}) in_a_file_that_cannot_grow(at_rest);
  return 0;
}
