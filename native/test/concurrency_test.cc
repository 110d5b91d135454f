// Everything at once, from many threads: writers (each in a region whose content it knows),
// discards, reads, syncs, snapshots, deletions with their merges, growing, moves of chunks, and a
// second opener that only reads. This is the main test for the thread sanitizer.
//
// What must hold meanwhile: a writer reads what it wrote; and writes in causal order (a number at
// `first`, then the same number at `second`) are seen in that order by every reader and in every
// snapshot.
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "moves.h"

using namespace pcow;

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr int kRounds = 12;
#else
constexpr int kRounds = 20;
#endif

constexpr uint64_t kRegion = 40 * 16384 + 4096;
constexpr int kWriters = 3;

class Threads {
 public:
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  void start(std::function<void()> body) { threads_.emplace_back(std::move(body)); }

 private:
  std::vector<std::thread> threads_;
};

std::unique_ptr<Image> open_image(const std::string& path, bool write) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

void make_image(const std::string& path, uint64_t size, uint32_t block_size) {
  CreateOptions options;
  options.size = size;
  options.block_size = block_size;
  MUST(create_image(path, options));
}

uint64_t number_at(const Image& image, const View* view, uint64_t offset) {
  uint64_t number = 0;
  CHECK(MUST(image.read(view, offset, &number, sizeof number)) == sizeof number);
  return number;
}

// Writes and discards in a region of its own, and compares the region with its expected content.
class Writer {
 public:
  Writer(Image* image, uint64_t start, uint64_t seed)
      : image_(image), start_(start), random_(seed), model_(kRegion) {}

  void step() {
    const uint64_t offset = random_() % kRegion;
    const uint64_t length =
        std::min(kRegion - offset, 1 + random_() % (random_() % 4 ? 5000 : 60000));
    std::vector<uint8_t> bytes(length);
    switch (random_() % 5) {
      case 0:
        MUST(image_->discard(start_ + offset, length));
        memset(model_.data() + offset, 0, length);
        break;
      case 1: compare(*image_, offset, length); break;
      default:
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
        MUST(image_->write(start_ + offset, bytes.data(), length));
        memcpy(model_.data() + offset, bytes.data(), length);
    }
  }
  void compare(const Image& image, uint64_t offset, uint64_t length) const {
    std::vector<uint8_t> found(length);
    CHECK(MUST(image.read(nullptr, start_ + offset, found.data(), length)) == length);
    CHECK(memcmp(found.data(), model_.data() + offset, length) == 0);
  }

 private:
  Image* image_;
  const uint64_t start_;
  std::mt19937_64 random_;
  std::vector<uint8_t> model_;
};

// One image: writers in their regions, and behind these two blocks for numbers in causal order.
void one_image(uint64_t seed) {
  TemporaryDirectory directory;
  const std::string path = directory / "busy.pcow";
  const uint64_t first = kWriters * kRegion;
  const uint64_t second = first + 5 * 16384;
  const uint64_t size = (second + 16384 + 4095) / 4096 * 4096;
  make_image(path, size, 16384);
  auto image = open_image(path, true);
  std::vector<Writer> writers;
  for (int i = 0; i < kWriters; i++) writers.emplace_back(image.get(), i * kRegion, seed + i);

  std::atomic<bool> done = false;
  std::mutex naming;
  std::deque<std::string> names;  // of the existing snapshots
  const auto some_view = [&]() -> std::shared_ptr<View> {
    const std::lock_guard lock(naming);
    return names.empty() ? nullptr : MUST(image->view(names.back()));
  };
  const auto check_order = [&](const Image& reader, const View* view) {
    const uint64_t later = number_at(reader, view, second);
    const uint64_t earlier = number_at(reader, view, first);
    CHECK(earlier >= later);
    if (view) CHECK(earlier <= later + 1);
  };
  {
    Threads threads;
    for (Writer& writer : writers)
      threads.start([&] {
        while (!done) writer.step();
      });
    threads.start([&] {
      for (uint64_t number = 1; !done; number++) {
        MUST(image->write(first, &number, sizeof number));
        MUST(image->write(second, &number, sizeof number));
        if (number % 64 == 0) MUST(image->sync());
      }
    });
    threads.start([&] {
      while (!done) {
        MUST(image->sync());
        (void)image->info();
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
      }
    });
    threads.start([&] {
      while (!done) {
        (void)image->pieces_when_complete(0);
        move_chunk(image.get(), 0, [] {});
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    });
    threads.start([&] {  // like another process
      auto reader = open_image(path, false);
      while (!done) {
        check_order(*reader, nullptr);
        (void)reader->info();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    threads.start([&] {  // reads snapshots that may be deleted meanwhile
      std::vector<uint8_t> once(size), again(size);
      while (!done) {
        const auto view = some_view();
        if (!view) continue;
        if (auto count = image->read(view.get(), 0, once.data(), size); !count) {
          CHECK(count.error().code == Code::kNotFound);
          continue;
        }
        uint64_t earlier, later;
        memcpy(&earlier, once.data() + first, sizeof earlier);
        memcpy(&later, once.data() + second, sizeof later);
        CHECK(earlier == later || earlier == later + 1);
        if (image->read(view.get(), 0, again.data(), size)) CHECK(once == again);
      }
    });
    std::mt19937_64 random(seed);
    for (int round = 0; round < kRounds; round++) {
      const std::string name = "s" + std::to_string(round);
      MUST(image->snapshot(name));
      check_order(*image, MUST(image->view(name)).get());
      {
        const std::lock_guard lock(naming);
        names.push_back(name);
      }
      CHECK(MUST(image->snapshots(true)).size() == names.size());
      while (names.size() > 4) {
        std::string victim;
        {
          const std::lock_guard lock(naming);
          const auto at = names.begin() + static_cast<ptrdiff_t>(random() % names.size());
          victim = *at;
          names.erase(at);
        }
        MUST(image->remove(victim, nullptr));
      }
      if (round % 10 == 5) MUST(image->resize(image->size() + 3 * 4096));
    }
    done = true;
  }
  for (const Writer& writer : writers) writer.compare(*image, 0, kRegion);
  MUST(image->close());
  FAILS(image->sync(), Code::kClosed);
  image = open_image(path, false);
  for (const Writer& writer : writers) writer.compare(*image, 0, kRegion);
}

// Snapshots of two images at one moment, while a writer alternates between them, and at the same
// time single snapshots in the opposite order.
void two_images() {
  TemporaryDirectory directory;
  make_image(directory / "one.pcow", 1 << 20, 4096);
  make_image(directory / "two.pcow", 1 << 20, 65536);
  auto one = open_image(directory / "one.pcow", true);
  auto two = open_image(directory / "two.pcow", true);
  std::atomic<bool> done = false;
  {
    Threads threads;
    threads.start([&] {
      for (uint64_t number = 1; !done; number++) {
        const uint64_t offset = number % 7 * 8192;
        MUST(one->write(0, &number, sizeof number));
        MUST(one->write(65536 + offset, &number, sizeof number));
        MUST(two->write(65536 + offset, &number, sizeof number));
        MUST(two->write(0, &number, sizeof number));
      }
    });
    threads.start([&] {
      for (int round = 0; !done; round++) {
        const std::string name = "other" + std::to_string(round);
        MUST(Image::snapshot_together({two.get(), one.get()}, name));
        MUST(one->remove(name, nullptr));
        MUST(two->remove(name, nullptr));
      }
    });
    for (int round = 0; round < kRounds; round++) {
      const std::string name = "both" + std::to_string(round);
      MUST(Image::snapshot_together({one.get(), two.get()}, name));
      const uint64_t earlier = number_at(*one, MUST(one->view(name)).get(), 0);
      const uint64_t later = number_at(*two, MUST(two->view(name)).get(), 0);
      CHECK(earlier == later || earlier == later + 1);
      if (round % 2) {
        MUST(one->remove(name, nullptr));
        MUST(two->remove(name, nullptr));
      }
    }
    done = true;
  }
  FAILS(Image::snapshot_together({one.get(), two.get(), one.get()}, "twice"), Code::kInvalid);
  MUST(one->close());
  MUST(two->close());
}

}  // namespace

int main() {
  const uint64_t seed = test_seed();
  one_image(seed);
  two_images();
  return 0;
}
