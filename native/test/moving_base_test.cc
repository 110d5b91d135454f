// The writer of a base, another process, deletes a snapshot there and uses its blocks for other
// data, at any moment of any operation on an image that stands on the base: before each file
// operation in turn. Whatever the operation has decided from its looks at the base must still be
// right: the image reads as if nothing had happened.
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "engine/disk/file.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 16384;
constexpr uint64_t kSub = 4096;
constexpr uint64_t kChunk = 512 * kBlock;
constexpr uint64_t kSize = 2 * kChunk;
constexpr uint64_t kLooked = 12 * kBlock;  // of each chunk: the part that these tests use

class At : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (armed && (!only_reads || operation == FileOperation::kRead) && ++count == number) {
      armed = false;
      happen();
    }
    return 0;
  }
  bool armed = false;
  bool only_reads = false;
  uint64_t number = 0;
  uint64_t count = 0;
  std::function<void()> happen;
};

std::unique_ptr<Image> open_image(const std::string& path, bool write,
                                  FileObserver* observer = nullptr) {
  OpenOptions options;
  options.write = write;
  options.observer = observer;
  return MUST(Image::open(path, options));
}

void put(Image* image, uint64_t offset, uint64_t length, char value) {
  const std::string bytes(length, value);
  MUST(image->write(offset, bytes.data(), length));
}

std::string look(Image* image, const View* view = nullptr) {
  std::string found(2 * kLooked, '?');
  CHECK(MUST(image->read(view, 0, found.data(), kLooked)) == kLooked);
  CHECK(MUST(image->read(view, kChunk, found.data() + kLooked, kLooked)) == kLooked);
  return found;
}

// An image with the snapshots `old` and, on it, `s`. The beginning of the image is held by `old`
// alone, or by both.
class Base {
 public:
  Base(const std::string& path, char value, bool both) : path_(path) {
    CreateOptions create;
    create.size = kSize;
    create.block_size = kBlock;
    MUST(create_image(path, create));
    image_ = open_image(path, true);
    for (const uint64_t start : {uint64_t{0}, kChunk}) {
      put(image_.get(), start, 2 * kBlock, value);
      put(image_.get(), start + 3 * kBlock + kSub, kSub, value);
    }
    MUST(image_->snapshot("old"));
    if (both) {
      for (const uint64_t start : {uint64_t{0}, kChunk}) {
        put(image_.get(), start + kBlock + kSub, kSub, static_cast<char>(value + 1));
        MUST(image_->discard(start + 3 * kBlock, kBlock));
        put(image_.get(), start + 5 * kBlock, 2 * kBlock, static_cast<char>(value + 1));
      }
    }
    MUST(image_->snapshot("s"));
  }
  BaseSpec spec() const { return {path_, "s", 0}; }
  void change() {
    MUST(image_->remove("old", nullptr));
    for (int i = 0; i < 3; i++) MUST(image_->sync());
    put(image_.get(), 100 * kBlock, 16 * kBlock, 'x');
  }

 private:
  const std::string path_;
  std::unique_ptr<Image> image_;
};

struct Scene {
  explicit Scene(bool both)
      : base(directory / "base.pcow", 'p', both), other(directory / "other.pcow", 'c', both) {
    CreateOptions create;
    create.has_base = true;
    create.base = base.spec();
    MUST(create_image(path, create));
  }
  TemporaryDirectory directory{"/dev/shm"};
  Base base;
  Base other;
  const std::string path = directory / "image.pcow";
  At at;
  std::unique_ptr<Image> image;
  std::string model;  // what look() must find

  void fill(uint64_t offset, uint64_t length, char value) {
    model.replace(offset, length, length, value);
  }
};

struct Work {
  const char* name;
  std::function<void(Scene*)> prepare;  // then the model is made from the content
  std::function<void(Scene*)> run;
  bool write = true;
};

void fault(Scene* scene, uint64_t offset, const FaultHint& hint) {
  FaultWork work;
  const Extent extent = MUST(scene->image->make_writable(offset, hint, &work));
  CHECK(extent.offset <= offset && offset < extent.offset + extent.length);
}

const std::function<void(Scene*)> kNothing = [](Scene*) {};

std::vector<Work> works() {
  std::vector<Work> all;
  for (const uint64_t block : {0, 1, 3, 9}) {
    for (const uint64_t ahead : {uint64_t{0}, 32 * kBlock}) {
      all.push_back({"a write fault", kNothing, [=](Scene* s) {
                       fault(s, block * kBlock + kSub, {ahead, false});
                     }});
      all.push_back({"a write fault in a block that is in part its own",
                     [=](Scene* s) { put(s->image.get(), block * kBlock, kSub, 'o'); },
                     [=](Scene* s) {
                       fault(s, block * kBlock + kSub, {ahead, false});
                     }});
    }
    all.push_back({"a write fault for a whole block", kNothing, [=](Scene* s) {
                     fault(s, block * kBlock, {0, true});
                   }});
    all.push_back({"space ahead", kNothing,
                   [=](Scene* s) { MUST(s->image->allocate_ahead(block * kBlock, 8 * kBlock)); }});
    all.push_back({"a write of bytes", kNothing, [=](Scene* s) {
                     put(s->image.get(), block * kBlock + kSub + 100, 200, 'w');
                     s->fill(block * kBlock + kSub + 100, 200, 'w');
                   }});
    all.push_back({"a write over two blocks", kNothing, [=](Scene* s) {
                     put(s->image.get(), block * kBlock + 100, kBlock, 'w');
                     s->fill(block * kBlock + 100, kBlock, 'w');
                   }});
    all.push_back({"a discard", kNothing, [=](Scene* s) {
                     MUST(s->image->discard(block * kBlock, kBlock));
                     s->fill(block * kBlock, kBlock, 0);
                   }});
    all.push_back({"a discard of a part", kNothing, [=](Scene* s) {
                     MUST(s->image->discard(block * kBlock + 100, kSub + 100));
                     s->fill(block * kBlock + 100, kSub + 100, 0);
                   }});
  }
  all.push_back({"completing a chunk", [](Scene* s) { put(s->image.get(), kBlock, kSub, 'o'); },
                 [](Scene* s) {
                   FaultWork work;
                   MUST(s->image->complete_chunk(0, &work));
                 }});
  all.push_back({"compacting",
                 [](Scene* s) {
                   put(s->image.get(), 0, 10 * kBlock, 0);
                   put(s->image.get(), 11 * kBlock, kSub, 'o');
                 },
                 [](Scene* s) { MUST(s->image->compact(nullptr)); }});
  all.push_back({"a rebase to nothing", kNothing,
                 [](Scene* s) { MUST(s->image->rebase({}, false, nullptr)); }});
  all.push_back({"a rebase", kNothing,
                 [](Scene* s) { MUST(s->image->rebase(s->other.spec(), true, nullptr)); }});
  all.push_back({"a read", kNothing, [](Scene* s) { CHECK(look(s->image.get()) == s->model); }});
  all.push_back({"a read by a reader", kNothing,
                 [](Scene* s) { CHECK(look(s->image.get()) == s->model); }, false});
  all.push_back({"a read of a snapshot", [](Scene* s) { MUST(s->image->snapshot("own")); },
                 [](Scene* s) {
                   CHECK(look(s->image.get(), MUST(s->image->view("own")).get()) == s->model);
                 }});
  return all;
}

// The base, or the coming base, changes before the `number`-th operation. Returns false if there
// are fewer operations.
bool try_at(const Work& work, bool both, uint64_t number, bool other_too) {
  Scene scene(both);
  if (!work.write) {
    auto writer = open_image(scene.path, true);
    MUST(writer->close());
  }
  scene.image = open_image(scene.path, work.write, &scene.at);
  work.prepare(&scene);
  {
    // So that the image under test has seen nothing yet.
    const auto reader = open_image(scene.path, false);
    scene.model = look(reader.get());
  }
  scene.at.number = number;
  scene.at.happen = [&] {
    scene.base.change();
    if (other_too) scene.other.change();
  };
  scene.at.armed = true;
  work.run(&scene);
  const bool happened = !scene.at.armed;
  scene.at.armed = false;
  if (look(scene.image.get()) != scene.model) {
    fprintf(stderr, "%s: it is not there; the base changed before operation %lu (%s)\n", work.name,
            number, both ? "both" : "old alone");
    exit(1);
  }
  MUST(scene.image->close());
  CHECK(look(open_image(scene.path, false).get()) == scene.model);
  return happened;
}

// While an image changes its base, the coming base changes, and then something is discarded in a
// range that the change of base has already passed.
bool discard_during_rebase(uint64_t number) {
  Scene scene(false);
  scene.image = open_image(scene.path, true, &scene.at);
  scene.model = look(scene.image.get());
  scene.at.number = number;
  scene.at.only_reads = true;
  scene.at.happen = [&] {
    scene.other.change();
    MUST(scene.image->discard(0, 4 * kBlock));
    scene.fill(0, 4 * kBlock, 0);
  };
  scene.at.armed = true;
  MUST(scene.image->rebase(scene.other.spec(), true, nullptr));
  const bool happened = !scene.at.armed;
  scene.at.armed = false;
  CHECK(look(scene.image.get()) == scene.model);
  MUST(scene.image->close());
  CHECK(look(open_image(scene.path, false).get()) == scene.model);
  return happened;
}

}  // namespace

int main() {
  std::mt19937_64 random(test_seed());
  const auto step = static_cast<uint64_t>(every());
  uint64_t tried = 0;
  for (const Work& work : works()) {
    for (const bool both : {false, true}) {
      const bool changes_base = std::string(work.name).find("rebase") != std::string::npos;
      for (uint64_t number = 1 + random() % step; try_at(work, both, number, changes_base);
           number += step)
        tried++;
    }
  }
  for (uint64_t number = 1 + random() % step; discard_during_rebase(number); number += step)
    tried++;
  printf("%lu changes of a base\n", tried);
  return 0;
}
