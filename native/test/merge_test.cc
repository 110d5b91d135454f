// What happens to an image while a deleted snapshot is merged into its heir. The progress callback of the deletion stands
// between two chunks of the merge: what it does there happens after the first chunk has been handed on, every time.
#include <cerrno>
#include <cstring>
#include <vector>

#include "../engine/check.h"
#include "../engine/file.h"
#include "check.h"

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

// Deletes a snapshot and does `between` once, when the first of the two chunks has been merged.
template <typename Action>
void remove_and(Image* image, const std::string& name, const Action& between) {
  int calls = 0;
  MUST(image->remove(name, [&](uint64_t done, uint64_t) {
    if (done == kChunk && calls++ == 0) between();
    return true;
  }));
  CHECK(calls == 1);
}

// The layer that goes hides data of the one below behind zeros. Its heir has taken the zeros over when a discard comes:
// "nothing here" would be right for as long as the layer stands, and bring the old bytes back when it is gone.
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

// The heir writes into a block that it has taken over: whoever still reads the deleted snapshot is told so, rather than
// given the new bytes.
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

// Makes the machine fail as long as it is told to.
class Failing : public FileObserver {
 public:
  FileOperation operation = FileOperation::kSync;
  int err = 0;     // 0: nothing fails
  int spared = 0;  // so many go well first
  int failures = 0;

  int before(FileOperation happening, const std::string&, uint64_t, uint64_t, const void*) override {
    if (!err || happening != operation || spared-- > 0) return 0;
    failures++;
    return err;
  }
};

// Two deletions were interrupted, and opening the image cannot go on with the first one: what the other one's heir lets go is still
// named by the layer that is to be merged into it, so it must not be used again.
void release_beside_a_merge_that_waits() {
  constexpr uint32_t kSmall = 4096;
  constexpr uint64_t kShared = 16;  // blocks
  constexpr uint64_t kReused = 40;
  TemporaryDirectory directory;
  CreateOptions options;
  options.size = kShared * kSmall;  // small at first: its blocks lie where a full disk takes them from
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
  FAILS(image->remove("second", [&](uint64_t done, uint64_t) { return done == 0; }), Code::kCancelled);
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
  const CheckReport report = MUST(check_image(directory / "image.pcow", {}, nullptr));
  CHECK(report.damages == 0 && report.leaks == 0);
}

}  // namespace

int main() {
  discard_of_inherited_zeros(false);
  discard_of_inherited_zeros(true);
  read_of_the_deleted();
  release_beside_a_merge_that_waits();
  return 0;
}
