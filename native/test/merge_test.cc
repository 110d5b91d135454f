// What happens to an image while a deleted snapshot is merged into its heir. The progress callback of the deletion stands
// between two chunks of the merge: what it does there happens after the first chunk has been handed on, every time.
#include <cstring>
#include <vector>

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

}  // namespace

int main() {
  discard_of_inherited_zeros(false);
  discard_of_inherited_zeros(true);
  read_of_the_deleted();
  return 0;
}
