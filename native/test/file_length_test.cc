// The image file stays short, however many snapshots come and go. What is written in order lies in
// few pieces nevertheless, and what is scattered can be moved into one. When what lies at its end
// is gone, closing makes it shorter.
#include <sys/stat.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/check/check.h"
#include "engine/disk/file.h"
#include "engine/format/geometry.h"
#include "moves.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 16384;
constexpr uint64_t kChunk = kBlock * kBlocksPerChunk;
constexpr uint64_t kPage = 4096;
constexpr int kKept = 10;

uint64_t length_of(const std::string& path) {
  struct stat now;
  CHECK(stat(path.c_str(), &now) == 0);
  return static_cast<uint64_t>(now.st_size);
}

// An image, and what it must hold: each page has a number.
class Numbered {
 public:
  Numbered(const TemporaryDirectory& directory, uint64_t size)
      : path_(directory / "image.pcow"), numbers_(size / kPage) {
    CreateOptions create;
    create.size = size;
    create.block_size = kBlock;
    MUST(create_image(path_, create));
    OpenOptions options;
    options.write = true;
    image_ = MUST(Image::open(path_, options));
  }
  ~Numbered() {
    MUST(image_->close());
    const CheckReport report = MUST(check_image(path_, {}, nullptr));
    CHECK(report.damages == 0 && report.leaks == 0);
  }

  Image& image() { return *image_; }
  uint64_t size() const { return numbers_.size() * kPage; }

  void write_in_order(uint64_t from, uint64_t to) {
    std::vector<uint64_t> bytes(kPage / 8 * 256);
    const uint64_t number = ++last_;
    for (uint64_t at = from; at < to; at += bytes.size() * 8) {
      const uint64_t length = std::min<uint64_t>(bytes.size() * 8, to - at);
      std::fill(bytes.begin(), bytes.end(), number);
      MUST(image_->write(at, bytes.data(), length));
      for (uint64_t page = at / kPage; page < (at + length) / kPage; page++)
        numbers_[page] = number;
    }
  }
  void write_page(uint64_t page) {
    const std::vector<uint64_t> bytes(kPage / 8, ++last_);
    MUST(image_->write(page * kPage, bytes.data(), kPage));
    numbers_[page] = last_;
  }
  void compare() const {
    std::vector<uint64_t> bytes(kPage / 8);
    for (uint64_t page = 0; page < numbers_.size(); page++) {
      MUST(image_->read(nullptr, page * kPage, bytes.data(), kPage));
      CHECK(bytes.front() == numbers_[page] && bytes.back() == numbers_[page]);
    }
  }

  // At most a quarter more than the image and the data of its snapshots (and of the active layer,
  // if that has been written anew as a whole).
  void must_be_short(uint64_t active = 0) const {
    uint64_t target = size() + active;
    for (const SnapshotInfo& snapshot : MUST(image_->snapshots(true))) target += snapshot.data;
    const uint64_t length = length_of(path_);
    printf("the file is %.2f times as long as what it needs\n",
           static_cast<double>(length) / static_cast<double>(target));
    CHECK(length <= target + target / 4);
  }
  // Pieces of the file in which bytes [from, to) lie, which the active layer holds.
  uint64_t pieces(uint64_t from, uint64_t to) const {
    uint64_t count = 1;
    for (uint64_t at = from + kBlock; at < to; at += kBlock)
      count += image_->file_offset(at) != image_->file_offset(at - kBlock) + kBlock;
    return count;
  }

 private:
  const std::string path_;
  std::unique_ptr<Image> image_;
  std::vector<uint64_t> numbers_;
  uint64_t last_ = 0;
};

// `data`: how much of the image is used. `pages`: that are written after each snapshot.
void snapshots_come_and_go(uint64_t size, uint64_t data, int pages) {
  const TemporaryDirectory directory("/dev/shm");
  Numbered numbered(directory, size);
  Image& image = numbered.image();
  std::mt19937_64 random(1);
  numbered.write_in_order(0, data);
  CHECK(numbered.pieces(0, data) <= data / kChunk);
  numbered.must_be_short();

  const int snapshots = effort(200, 200, 30);
  for (int number = 1; number <= snapshots; number++) {
    MUST(image.snapshot("s" + std::to_string(number)));
    for (int write = 0; write < pages; write++) numbered.write_page(random() % (data / kPage));
    if (number > kKept) MUST(image.remove("s" + std::to_string(number - kKept), nullptr));
  }
  numbered.compare();
  numbered.must_be_short();

  // A guest with too many mappings has them reduced.
  for (uint64_t chunk = 0; chunk < data; chunk += kChunk) {
    move_chunk(&image, chunk);
    CHECK(numbered.pieces(chunk, chunk + kChunk) == 1);
    CHECK(image.pieces_when_complete(chunk) == 1);
  }
  numbered.compare();
  numbered.must_be_short(data);

  for (int number = 1; number <= 3; number++) {
    MUST(image.snapshot("whole" + std::to_string(number)));
    numbered.write_in_order(0, data);
    printf("%llu MiB in order lie in %llu pieces\n", static_cast<unsigned long long>(data >> 20),
           static_cast<unsigned long long>(numbered.pieces(0, data)));
    // Where everything is used, the first layer after many small writes gets the scattered places
    // that those have left. The next ones have room again.
    const bool scattered = data == size && number == 1;
    CHECK(numbered.pieces(0, data) <= (scattered ? data / kBlock / 8 : 8 * data / kChunk));
    numbered.must_be_short(data);
  }
  numbered.compare();
}

std::unique_ptr<Image> open_image(const std::string& path, bool write,
                                  FileObserver* observer = nullptr) {
  OpenOptions options;
  options.write = write;
  options.observer = observer;
  return MUST(Image::open(path, options));
}

// An image of two chunks. The first block of each is written, and the second chunk is at the end of
// the file.
std::string make_two_chunks(const TemporaryDirectory& directory) {
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = 2 * kChunk;
  create.block_size = kBlock;
  MUST(create_image(path, create));
  auto image = open_image(path, true);
  const std::vector<char> bytes(kBlock, 'x');
  for (const uint64_t at : {uint64_t{0}, kChunk}) MUST(image->write(at, bytes.data(), kBlock));
  MUST(image->close());
  return path;
}

void end_goes_back() {
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = make_two_chunks(directory);
  const uint64_t before = length_of(path);
  auto image = open_image(path, true);
  MUST(image->discard(kChunk, kBlock));
  MUST(image->close());
  printf("%llu KiB, and %llu after a discard\n", static_cast<unsigned long long>(before >> 10),
         static_cast<unsigned long long>(length_of(path) >> 10));
  CHECK(length_of(path) + kChunk <= before);
  const CheckReport report = MUST(check_image(path, {}, nullptr));
  CHECK(report.damages == 0 && report.leaks == 0);

  // What is written in order after opening again still lies in one piece.
  image = open_image(path, true);
  const std::vector<char> bytes(kBlock, 'y');
  for (const uint64_t first : {uint64_t{0}, kChunk})
    for (uint64_t at = first + kBlock; at < first + 100 * kBlock; at += kBlock) {
      if (at == first + 50 * kBlock) {
        MUST(image->close());
        image = open_image(path, true);
      }
      MUST(image->write(at, bytes.data(), kBlock));
    }
  for (const uint64_t first : {uint64_t{0}, kChunk})
    CHECK(image->file_offset(first + 99 * kBlock) ==
          image->file_offset(first + kBlock) + 98 * kBlock);
  MUST(image->close());
}

// Acts once, before the next read of the file.
class BeforeRead : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (operation == FileOperation::kRead && act)
      if (const auto now = std::exchange(act, nullptr)) now();
    return 0;
  }
  std::function<void()> act;
};

// Another process reads at the end of the file when that goes back.
void readers_at_the_end(bool of_snapshot) {
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = make_two_chunks(directory);
  auto writer = open_image(path, true);
  if (of_snapshot) {
    MUST(writer->snapshot("s"));
    MUST(writer->discard(kChunk, kBlock));
  }
  BeforeRead observer;
  const auto reader = open_image(path, false, &observer);
  const auto view = of_snapshot ? MUST(reader->view("s")) : nullptr;
  std::vector<char> bytes(kBlock);
  MUST(reader->read(view.get(), 0, bytes.data(), kBlock));
  const uint64_t before = length_of(path);
  observer.act = [&] {
    if (of_snapshot)
      MUST(writer->remove("s", nullptr));
    else
      MUST(writer->discard(kChunk, kBlock));
    MUST(writer->close());
  };
  const auto read = reader->read(view.get(), kChunk, bytes.data(), kBlock);
  CHECK(!observer.act && length_of(path) < before);
  if (of_snapshot) {
    FAILS(read, Code::kNotFound);
  } else {
    CHECK(MUST(read) == kBlock && bytes == std::vector<char>(kBlock));
  }
}

}  // namespace

int main() {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  snapshots_come_and_go(256 * kMiB, 64 * kMiB, 32);
  // Everything is used, and much of each chunk is written between two snapshots.
  snapshots_come_and_go(128 * kMiB, 128 * kMiB, 400);
  end_goes_back();
  readers_at_the_end(false);
  readers_at_the_end(true);
  return 0;
}
