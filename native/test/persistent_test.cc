// The engine on persistent memory: the system calls that it makes, and what it does when the memory
// fails. persistent_crash_test tests what a power cut leaves of its stores.
#include "engine/disk/persistent.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "check.h"
#include "disk_simulator.h"
#include "engine/check/check.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 65536;

// Makes the image count as one in persistent memory, and counts the operations on it.
class Memory : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    counts[operation]++;
    return operation == refused ? ENOSPC : 0;
  }
  bool is_persistent(const std::string&) override { return true; }
  uint64_t count() const {
    uint64_t all = 0;
    for (const auto& [operation, count] : counts) all += count;
    return all;
  }
  std::map<FileOperation, uint64_t> counts;
  std::optional<FileOperation> refused;
};

std::unique_ptr<Image> open_image(const std::string& path, FileObserver* observer) {
  OpenOptions options;
  options.write = true;
  options.observer = observer;
  return MUST(Image::open(path, options));
}

// A new image of so many blocks.
std::unique_ptr<Image> make_image(const std::string& path, uint64_t blocks, Memory* memory) {
  CreateOptions create;
  create.size = blocks * kBlock;
  MUST(create_image(path, create));
  return open_image(path, memory);
}

std::vector<char> bytes_of(const Image& image) {
  std::vector<char> bytes(image.size());
  CHECK(MUST(image.read(nullptr, 0, bytes.data(), bytes.size())) == bytes.size());
  return bytes;
}

void a_copy_leaves_its_neighbours_alone() {
  std::mt19937_64 random(test_seed());
  alignas(64) char to[1024];
  char from[1024];
  for (int round = 0; round < 2000; round++) {
    for (char& byte : from) byte = static_cast<char>(random());
    memset(to, round, sizeof to);
    const size_t at = random() % 300;
    const size_t length = random() % 600;
    cpu::copy(to + at, from, length);
    cpu::fence();
    CHECK(memcmp(to + at, from, length) == 0);
    for (size_t i = 0; i < sizeof to; i++)
      CHECK((i >= at && i < at + length) || to[i] == static_cast<char>(round));
  }
}

void only_dax_is_persistent_memory(const TemporaryDirectory& directory) {
  const std::string path = directory / "file";
  const auto file = MUST(File::create(path, nullptr));
  MUST(file->resize(4096));
  CHECK(!is_in_persistent_memory(file->descriptor()));
  CHECK(!MUST(File::open(path, true, nullptr))->is_persistent());
}

// Expansions, copies, writes and a snapshot: no write(2), and no sync. A sync then has nothing to
// do, until a block is mapped by others.
void nothing_is_asked_of_the_kernel(const TemporaryDirectory& directory) {
  const std::string path = directory / "asked.pcow";
  Memory memory;
  auto image = make_image(path, 64, &memory);
  CHECK(image->info().persistent);
  const std::vector<char> data(3 * kBlock, 'd');
  const auto kernel_calls = [&] {
    return image->info().kernel_writes + image->info().kernel_syncs;
  };

  const uint64_t opened = kernel_calls();
  MUST(image->write(100, data.data(), data.size()));
  MUST(image->snapshot("s"));
  MUST(image->write(kBlock + 5, data.data(), 7));
  CHECK(kernel_calls() == opened);
  // Gives back what the layer directory before the snapshot took.
  for (int i = 0; i < 2; i++) MUST(image->sync());
  const uint64_t before = kernel_calls();
  const uint64_t done = memory.count();
  MUST(image->sync());
  CHECK(memory.count() == done);

  FaultWork work;
  MUST(image->make_writable(2 * kBlock + 4096, {}, &work));
  CHECK(work.copied);
  MUST(image->make_writable(40 * kBlock, {.ahead = 4 * kBlock}, &work));
  CHECK(work.expanded);
  MUST(image->complete_chunk(0, &work));
  CHECK(kernel_calls() == before);
  MUST(image->sync());
  CHECK(kernel_calls() == before + 1);
  MUST(image->close());
}

// A hole becomes durable only with a sync. Only then is a block used again.
void holes_are_synced(const TemporaryDirectory& directory) {
  const std::string path = directory / "holes.pcow";
  Memory memory;
  auto image = make_image(path, 64, &memory);
  const std::vector<char> data(kBlock, 'd');
  MUST(image->write(0, data.data(), data.size()));
  MUST(image->sync());
  const uint64_t before = memory.counts[FileOperation::kSync];
  MUST(image->discard(0, kBlock));
  MUST(image->sync());  // punches it: the freeing is durable already
  CHECK(memory.counts[FileOperation::kSync] == before && memory.counts[FileOperation::kPunch] > 0);
  MUST(image->sync());
  CHECK(memory.counts[FileOperation::kSync] == before + 1);
  MUST(image->write(kBlock, data.data(), data.size()));
  MUST(image->discard(kBlock + 4096, 4096));  // in place
  MUST(image->sync());
  CHECK(memory.counts[FileOperation::kSync] == before + 2);
  MUST(image->close());
}

// What a writer on a disk has left unsynced also becomes durable by a sync there. Then the file
// goes back to a disk.
void an_image_comes_from_a_disk_and_goes_back(const TemporaryDirectory& directory) {
  const std::string path = directory / "carried.pcow";
  CreateOptions create;
  create.size = 16 * kBlock;
  MUST(create_image(path, create));
  const std::vector<char> data(3 * kBlock, 'd');
  const pid_t killed = fork();
  if (killed == 0) {
    auto image = open_image(path, nullptr);
    MUST(image->write(1000, data.data(), data.size()));
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(killed, &status, 0) == killed && status == 0);

  Memory memory;
  auto image = open_image(path, &memory);
  MUST(image->sync());
  MUST(image->write(10 * kBlock, data.data(), data.size()));
  const std::vector<char> expected = bytes_of(*image);
  CHECK(memcmp(expected.data() + 1000, data.data(), data.size()) == 0);
  DiskState cut = DiskState::of_file(path);
  cut.forget_boot();
  const std::string copy = directory / "copy.pcow";
  cut.write_to(copy);
  MUST(image->close());
  for (const std::string& one : {path, copy}) {
    const auto again = open_image(one, nullptr);
    CHECK(!again->info().persistent && bytes_of(*again) == expected);
    MUST(again->close());
    CHECK(MUST(check_image(one, {}, nullptr)).damages == 0);
  }
}

// Without space there is an error, and no SIGBUS; and the image remains usable.
void a_full_disk_is_an_error(const TemporaryDirectory& directory) {
  const std::string path = directory / "full.pcow";
  Memory memory;
  auto image = make_image(path, 16, &memory);
  const std::vector<char> data(kBlock, 'd');
  MUST(image->write(0, data.data(), data.size()));
  memory.refused = FileOperation::kAllocate;
  CHECK(image->write(4 * kBlock, data.data(), data.size()).error().code == Code::kNoSpace);
  MUST(image->write(4096, data.data(), 4096));  // in place
  memory.refused.reset();
  MUST(image->write(4 * kBlock, data.data(), data.size()));
  MUST(image->close());
}

// Like a page whose memory is bad: a store raises SIGBUS. The caller gets an error, and nothing
// counts as durable from then on.
void a_bad_page_is_an_error(const TemporaryDirectory& directory) {
  const std::string path = directory / "bad.pcow";
  Memory memory;
  auto image = make_image(path, 16, &memory);
  const std::vector<char> data(kBlock, 'd');
  MUST(image->write(8 * kBlock, data.data(), data.size()));
  CHECK(truncate(path.c_str(), 8192) == 0);
  CHECK(!image->write(8 * kBlock, data.data(), data.size()));
  CHECK(!image->sync());
  CHECK(!image->close());
}

}  // namespace

int main() {
  const TemporaryDirectory directory;
  a_copy_leaves_its_neighbours_alone();
  only_dax_is_persistent_memory(directory);
  nothing_is_asked_of_the_kernel(directory);
  holes_are_synced(directory);
  an_image_comes_from_a_disk_and_goes_back(directory);
  a_full_disk_is_an_error(directory);
  a_bad_page_is_an_error(directory);
  return 0;
}
