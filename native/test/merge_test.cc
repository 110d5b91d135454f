// What happens to an image while a deleted snapshot is merged into its heir. The deletion calls the
// progress callback between two chunks of the merge: what the callback does always happens after
// the first chunk has been handed over.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/check/check.h"
#include "engine/check/scrub.h"
#include "engine/disk/file.h"
#include "engine/format/superblock.h"

using namespace pcow;

namespace {

constexpr uint32_t kBlock = 65536;
constexpr uint64_t kChunk = 512 * uint64_t{kBlock};

std::unique_ptr<Image> new_image(const std::string& path) {
  CreateOptions options;
  options.size = 2 * kChunk;
  options.block_size = kBlock;
  MUST(create_image(path, options));
  OpenOptions writing;
  writing.write = true;
  return MUST(Image::open(path, writing));
}

void put(Image* image, uint64_t offset, size_t length, char value) {
  const std::vector<char> bytes(length, value);
  MUST(image->write(offset, bytes.data(), length));
}

// Whether [offset, offset + length) holds that value everywhere.
bool holds(const Image& image, const View* view, uint64_t offset, size_t length, char value) {
  std::vector<char> found(length);
  CHECK(MUST(image.read(view, offset, found.data(), length)) == length);
  return found == std::vector<char>(length, value);
}

// Deletes a snapshot, and calls `between` once, after the first of the two chunks has been merged.
template <typename Action>
void remove_and(Image* image, const std::string& name, const Action& between) {
  int calls = 0;
  MUST(image->remove(name, [&](uint64_t done, uint64_t) {
    if (done == kChunk && calls++ == 0) between();
    return true;
  }));
  CHECK(calls == 1);
}

// The deleted layer hides data of the layer below it behind zeros. Its heir has taken the zeros
// over when a discard comes. An empty entry would be right as long as the deleted layer exists, and
// would bring the old bytes back when it is gone.
void discard_of_inherited_zeros(bool heir_has_data) {
  TemporaryDirectory directory;
  auto image = new_image(directory / "image.pcow");
  put(image.get(), 0, kBlock, 'a');
  MUST(image->snapshot("old"));
  MUST(image->discard(0, kBlock));
  put(image.get(), kChunk, kBlock, 'b');
  MUST(image->snapshot("emptied"));
  if (heir_has_data) put(image.get(), 0, 4096, 'c');
  remove_and(image.get(), "emptied", [&] { MUST(image->discard(0, kBlock)); });
  CHECK(holds(*image, nullptr, 0, kBlock, 0));
  CHECK(holds(*image, nullptr, kChunk, kBlock, 'b'));
  CHECK(holds(*image, MUST(image->view("old")).get(), 0, kBlock, 'a'));
}

// The heir writes into a block that it has taken over: a reader of the deleted snapshot gets an
// error instead of the new bytes.
void read_of_the_deleted() {
  TemporaryDirectory directory;
  auto image = new_image(directory / "image.pcow");
  put(image.get(), 0, kBlock, 'a');
  put(image.get(), kChunk, kBlock, 'a');
  MUST(image->snapshot("gone"));
  const auto view = MUST(image->view("gone"));
  CHECK(holds(*image, view.get(), 0, kBlock, 'a'));
  remove_and(image.get(), "gone", [&] {
    put(image.get(), 0, kBlock, 'b');
    char byte;
    FAILS(image->read(view.get(), 0, &byte, 1), Code::kNotFound);
  });
  CHECK(holds(*image, nullptr, 0, kBlock, 'b'));
}

void must_be_sound(const std::string& path) {
  const CheckReport report = MUST(check_image(path, {}, nullptr));
  if (report.damages || report.leaks)
    fprintf(stderr, "%s\n", report.findings.front().message.c_str());
  CHECK(report.damages == 0 && report.leaks == 0);
}

// Makes operations fail while `err` is set.
class Failing : public FileObserver {
 public:
  FileOperation operation = FileOperation::kSync;
  int err = 0;     // 0: nothing fails
  int spared = 0;  // the number of operations that succeed first
  int failures = 0;

  int before(FileOperation happening, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (!err || happening != operation || spared-- > 0) return 0;
    failures++;
    return err;
  }
};

// Two deletions were interrupted, and opening the image cannot continue the first one. The layer
// that is to be merged into the other one's heir still names what that heir releases, so these
// blocks must not be used again.
void release_beside_a_merge_that_waits() {
  constexpr uint32_t kSmall = 4096;
  constexpr uint64_t kShared = 16;  // blocks
  constexpr uint64_t kReused = 40;
  TemporaryDirectory directory;
  CreateOptions options;
  // Small at first: its blocks are those that a full disk uses first.
  options.size = kShared * kSmall;
  options.block_size = kSmall;
  MUST(create_image(directory / "image.pcow", options));
  OpenOptions writing;
  writing.write = true;
  auto image = MUST(Image::open(directory / "image.pcow", writing));
  put(image.get(), 0, kSmall, 'a');
  MUST(image->snapshot("first"));
  put(image.get(), kSmall, kSmall, 'b');
  MUST(image->snapshot("heir"));
  put(image.get(), 0, kShared * kSmall, 'c');
  MUST(image->resize((512 + 2 * kReused) * kSmall));
  const uint64_t second_chunk = 512 * uint64_t{kSmall};
  put(image.get(), second_chunk + kReused * kSmall, kSmall, 'c');
  MUST(image->snapshot("second"));
  FAILS(image->remove("second", [&](uint64_t done, uint64_t) { return done == 0; }),
        Code::kCancelled);
  FAILS(image->remove("first", [](uint64_t, uint64_t) { return false; }), Code::kCancelled);
  MUST(image->close());

  Failing machine;
  machine.operation = FileOperation::kMap;
  machine.err = ENOMEM;
  machine.spared = 1;  // the active layer's table
  writing.observer = &machine;
  image = MUST(Image::open(directory / "image.pcow", writing));
  CHECK(machine.failures == 1);
  machine.err = 0;
  MUST(image->discard(0, kShared * kSmall));
  for (int i = 0; i < 2; i++) MUST(image->sync());
  machine = {};
  machine.operation = FileOperation::kResize;
  machine.err = ENOSPC;
  put(image.get(), second_chunk, kReused * kSmall, 'd');
  CHECK(machine.failures > 0);
  machine.err = 0;
  MUST(image->compact(nullptr));  // finishes both deletions
  for (int i = 0; i < 3; i++) MUST(image->sync());
  CHECK(holds(*image, nullptr, 0, kShared * kSmall, 0));
  CHECK(holds(*image, nullptr, second_chunk, kReused * kSmall, 'd'));
  CHECK(holds(*image, nullptr, second_chunk + kReused * kSmall, kSmall, 'c'));
  MUST(image->close());
  must_be_sound(directory / "image.pcow");
}

// One deletion is stopped in the middle, and its heir writes into a block that it has taken over.
// Then another operation would merge into the waiting layer, or change it.
enum class Next { kOlderDeletion, kFrozenHeir, kDeletedHeir, kFlatten, kRollback };
void beside_a_deletion_that_waits(Next next, bool reopened, bool damaged) {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  const std::string base = directory / "base.pcow";
  auto below = new_image(base);
  put(below.get(), 2 * 4096, 4096, 'z');
  MUST(below->snapshot("ground"));
  MUST(below->close());
  CreateOptions options;
  options.has_base = true;
  options.base = {base, "ground"};
  MUST(create_image(path, options));
  OpenOptions writing;
  writing.write = true;
  auto image = MUST(Image::open(path, writing));
  if (next != Next::kFlatten) {
    put(image.get(), 4096, 4096, 'a');
    MUST(image->snapshot("older"));
  }
  put(image.get(), 0, 4096, 'b');
  put(image.get(), kChunk, 4096, 'b');
  const uint64_t place = image->file_offset(kChunk);
  MUST(image->snapshot("newer"));
  const auto flip = [&] { MUST(MUST(File::open(path, true, nullptr))->write(place + 9, "#", 1)); };
  if (damaged) {
    MUST(image->add_checksums(nullptr));
    MUST(image->close());
    flip();
    image = MUST(Image::open(path, writing));
    FAILS(image->remove("newer", nullptr), Code::kCorrupt);
  } else {
    FAILS(image->remove("newer", [](uint64_t done, uint64_t) { return done == 0; }),
          Code::kCancelled);
  }
  put(image.get(), 4096, 4096, 'c');
  put(image.get(), 2 * 4096, 4096, 'd');
  MUST(image->sync());
  if (next == Next::kFrozenHeir || next == Next::kDeletedHeir) {
    MUST(image->snapshot("heir"));
    put(image.get(), 3 * 4096, 4096, 'e');
  }
  if (reopened) {
    MUST(image->close());
    image = MUST(Image::open(path, writing));
  }
  const auto must_hold = [&](const View* view) {
    CHECK(holds(*image, view, 0, 4096, 'b'));
    CHECK(holds(*image, view, 4096, 4096, 'c'));
    CHECK(holds(*image, view, 2 * 4096, 4096, 'd'));
    if (!damaged) CHECK(holds(*image, view, kChunk, 4096, 'b'));
  };
  const auto attempt = [&]() -> Result<void> {
    switch (next) {
      case Next::kFlatten: return image->rebase({}, false, nullptr);
      case Next::kDeletedHeir: return image->remove("heir", nullptr);
      case Next::kRollback: return image->rollback("older");
      default: return image->remove("older", nullptr);
    }
  };
  if (next == Next::kRollback || next == Next::kDeletedHeir || !damaged) {
    MUST(attempt());
  } else {
    FAILS(attempt(), Code::kCorrupt);
  }
  if (damaged && next != Next::kRollback) {
    FAILS(image->compact(nullptr), Code::kCorrupt);
    FAILS(image->resize(kChunk, true), Code::kCorrupt);
  }
  if (next == Next::kRollback) {
    CHECK(holds(*image, nullptr, 0, 4096, 0));
    CHECK(holds(*image, nullptr, 4096, 4096, 'a'));
  } else {
    must_hold(nullptr);
    if (next == Next::kFrozenHeir) must_hold(MUST(image->view("heir")).get());
  }
  MUST(image->close());
  must_be_sound(path);
  if (!damaged || next == Next::kRollback) return;
  // The block gets its byte back, and everything continues.
  MUST(MUST(File::open(path, true, nullptr))->write(place + 9, "b", 1));
  image = MUST(Image::open(path, writing));
  if (next == Next::kFlatten) MUST(image->rebase({}, false, nullptr));
  must_hold(nullptr);
  const size_t left = MUST(image->snapshots(false)).size();
  CHECK(left == (next == Next::kFrozenHeir || next == Next::kDeletedHeir ? 1 : 0));
  MUST(image->close());
  must_be_sound(path);
}

// The merge in one branch cannot be finished; those in other branches can.
void a_branch_that_is_stuck() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  auto image = new_image(path);
  put(image.get(), 0, kBlock, 'a');
  MUST(image->snapshot("fork"));
  put(image.get(), kBlock, kBlock, 'b');
  const uint64_t place = image->file_offset(kBlock);
  MUST(image->snapshot("bad"));
  MUST(image->snapshot("above"));
  MUST(image->rollback("fork"));
  put(image.get(), 2 * kBlock, kBlock, 'c');
  MUST(image->snapshot("good"));
  put(image.get(), 2 * kBlock, 4096, 'd');
  MUST(image->add_checksums(nullptr));
  MUST(image->close());
  MUST(MUST(File::open(path, true, nullptr))->write(place, "#", 1));
  OpenOptions writing;
  writing.write = true;
  image = MUST(Image::open(path, writing));
  FAILS(image->remove("bad", nullptr), Code::kCorrupt);
  MUST(image->remove("good", nullptr));
  CHECK(holds(*image, nullptr, 2 * kBlock, 4096, 'd'));
  CHECK(holds(*image, nullptr, 2 * kBlock + 4096, 4096, 'c'));
  CHECK(MUST(image->snapshots(false)).size() == 2);
  MUST(image->close());
  must_be_sound(path);
}

// The heir writes into a block that it has taken over from a layer with checksums: no scrub reports
// that as damage, neither now nor after the deletion was stopped, and no checksum is made from it.
void scrub_beside_a_merge() {
  TemporaryDirectory directory;
  const std::string path = directory / "image.pcow";
  OpenOptions writing;
  writing.write = true;
  auto image = new_image(path);
  put(image.get(), 0, kBlock, 'a');
  put(image.get(), kChunk, kBlock, 'a');
  const uint64_t place = image->file_offset(kChunk);
  MUST(image->snapshot("s"));
  MUST(image->add_checksums(nullptr));
  MUST(image->close());
  // The second chunk is not taken over.
  MUST(MUST(File::open(path, true, nullptr))->write(place, "#", 1));
  image = MUST(Image::open(path, writing));
  FAILS(image->remove("s", nullptr), Code::kCorrupt);
  put(image.get(), 0, kBlock, 'b');
  MUST(image->sync());
  const auto look = [&] {
    const auto other = MUST(Image::open(path, {}));
    for (const Image* by : {image.get(), other.get()}) {
      const ScrubReport report = MUST(by->scrub(nullptr));
      CHECK(report.damages == 1 && report.findings[0].offset == kChunk);
    }
  };
  look();
  MUST(image->add_checksums(nullptr));
  look();
  MUST(image->close());
  image = MUST(Image::open(path, writing));
  look();
  MUST(image->close());
  MUST(MUST(File::open(path, true, nullptr))->write(place, "a", 1));
  image = MUST(Image::open(path, writing));
  CHECK(MUST(image->scrub(nullptr)).layers.empty());
  CHECK(holds(*image, nullptr, 0, kBlock, 'b'));
  CHECK(holds(*image, nullptr, kChunk, kBlock, 'a'));
}

// An image in another directory stands on the deleted snapshot. It reads what it always read, or
// gets an error; also if it is opened while the merge is running, or if its base layer is hidden
// but stays because two layers stand on it.
void clone_on_a_deleted_snapshot() {
  TemporaryDirectory directory;
  const std::string path = directory / "base.pcow";
  const std::string path_of_clone = directory / "clone.pcow";
  auto base = new_image(path);
  put(base.get(), 0, kBlock, 'a');
  put(base.get(), kChunk, kBlock, 'a');
  MUST(base->snapshot("ground"));
  put(base.get(), 0, 4096, 's');
  put(base.get(), kChunk, 4096, 's');
  MUST(base->snapshot("s"));
  CreateOptions options;
  options.has_base = true;
  options.base = {path, "s"};
  MUST(create_image(path_of_clone, options));
  const auto clone = MUST(Image::open(path_of_clone, {}));
  const auto must_read = [&](const Image& image) {
    CHECK(holds(image, nullptr, 0, 4096, 's'));
    CHECK(holds(image, nullptr, 4096, 4096, 'a'));
    CHECK(holds(image, nullptr, kChunk + 4096, 4096, 'a'));
  };
  // Layers below the one on which it stands may be deleted.
  remove_and(base.get(), "ground", [&] {
    put(base.get(), 0, kBlock, 'x');
    must_read(*clone);
  });
  must_read(*clone);
  MUST(base->snapshot("branch"));
  MUST(base->rollback("s"));
  MUST(base->remove("s", nullptr));  // hidden, with two children
  must_read(*clone);
  must_read(*MUST(Image::open(path_of_clone, {})));
  const auto must_fail = [&] {
    char byte;
    FAILS(clone->read(nullptr, 0, &byte, 1), Code::kBaseChanged);
    FAILS(Image::open(path_of_clone, {}), Code::kBaseChanged);
  };
  int calls = 0;
  MUST(base->remove("branch", [&](uint64_t done, uint64_t) {
    if (done == kChunk && calls++ == 0) {
      put(base.get(), 0, kBlock, 'y');
      must_fail();
    }
    return true;
  }));
  CHECK(calls == 1);
  must_fail();
  options.base.layer = 2;
  FAILS(create_image(directory / "another.pcow", options), Code::kNotFound);
}

// A snapshot that other processes see, but that is not durable yet: a process that wants to stand
// on it waits. If the snapshot's writer has died, the next process makes it durable.
void clone_on_an_unsealed_snapshot(bool writer_dies) {
  TemporaryDirectory directory;
  const std::string path = directory / "base.pcow";
  std::unique_ptr<Image> base;
  std::unique_ptr<PendingSnapshot> pending;
  const auto take = [&] {
    base = new_image(path);
    put(base.get(), 0, kBlock, 's');
    pending = MUST(PendingSnapshot::prepare(base.get(), "s", false));
    pending->close_gate();
    MUST(pending->commit());
  };
  if (writer_dies) {
    const pid_t writer = fork();
    if (writer == 0) {
      take();
      _exit(0);
    }
    int status;
    CHECK(waitpid(writer, &status, 0) == writer && status == 0);
  } else {
    take();
  }
  const auto sealed = [&] {
    return MUST(read_superblock(*MUST(File::open(path, false, nullptr)))).sealed;
  };
  CHECK(sealed() == 0);
  std::atomic<bool> made{false};
  std::thread cloning([&] {
    CreateOptions options;
    options.has_base = true;
    options.base = {path, "s"};
    MUST(create_image(directory / "clone.pcow", options));
    CHECK(sealed() == 1);
    made = true;
  });
  if (!writer_dies) {
    // However long the other process takes to get there, the image must not be made earlier.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(!made);
    MUST(pending->finish());
  }
  cloning.join();
  CHECK(holds(*MUST(Image::open(directory / "clone.pcow", {})), nullptr, 0, kBlock, 's'));
}

}  // namespace

int main() {
  discard_of_inherited_zeros(false);
  discard_of_inherited_zeros(true);
  read_of_the_deleted();
  release_beside_a_merge_that_waits();
  for (const Next next : {Next::kOlderDeletion, Next::kFrozenHeir, Next::kDeletedHeir,
                          Next::kFlatten, Next::kRollback}) {
    beside_a_deletion_that_waits(next, false, false);
    beside_a_deletion_that_waits(next, false, true);
    beside_a_deletion_that_waits(next, true, true);
  }
  a_branch_that_is_stuck();
  scrub_beside_a_merge();
  clone_on_a_deleted_snapshot();
  clone_on_an_unsealed_snapshot(false);
  clone_on_an_unsealed_snapshot(true);
  return 0;
}
