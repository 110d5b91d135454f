// Every change of a base's structure, with every kind of long reader of an image that stands on it:
// a mount's writer, a reader, a monitored process that has only descriptors. What they read stays
// the same, as long as they are given the files that they need. If any step of loading the chain
// again fails for a while, they get an error, and never other bytes, and continue when it no longer
// fails. One file, because all these tests use one family of images (struct Scene).
#include <fcntl.h>
#include <sys/resource.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "engine/disk/file.h"
#include "engine/format/geometry.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 16384;
constexpr uint64_t kSize = 64 * kBlock;
constexpr uint64_t kLooked = 12 * kBlock;

// From the `number`-th operation of its kind on, each one fails until the observer is disarmed.
class Failing : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (!armed || operation != kind || ++count < number) return 0;
    failed = true;
    return kind == FileOperation::kMap ? ENOMEM : EIO;
  }
  bool armed = false;
  bool failed = false;
  FileOperation kind = FileOperation::kRead;
  int number = 0;
  int count = 0;
};

// A disk that writes the beginning of one superblock, which contains all the changes, and then
// fails.
class HalfASuperblock : public FileObserver {
 public:
  int before(FileOperation operation, const std::string& path, uint64_t offset, uint64_t,
             const void* data) override {
    if (!armed || operation != FileOperation::kWrite || offset > kPageSize) return 0;
    armed = false;
    const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    CHECK(descriptor >= 0 && pwrite(descriptor, data, 100, static_cast<off_t>(offset)) == 100);
    close(descriptor);
    return EIO;
  }
  bool armed = false;
};

void create(const std::string& path, const BaseSpec* base) {
  CreateOptions options;
  options.size = base ? 0 : kSize;
  options.block_size = base ? 0 : kBlock;
  options.has_base = base != nullptr;
  if (base) options.base = *base;
  MUST(create_image(path, options));
}

std::unique_ptr<Image> open_writer(const std::string& path) {
  OpenOptions options;
  options.write = true;
  return MUST(Image::open(path, options));
}

Result<void> try_put(Image* image, uint64_t block, char value) {
  const std::string bytes(kBlock, value);
  return image->write(block * kBlock, bytes.data(), bytes.size());
}
void put(Image* image, uint64_t block, char value) { MUST(try_put(image, block, value)); }

Result<std::string> look(Image* image, const View* view) {
  std::string found(kLooked, '?');
  auto length = image->read(view, 0, found.data(), found.size());
  if (!length) return length.error();
  CHECK(*length == kLooked);
  return found;
}

enum class Kind { kWriter, kReader, kMonitoredWriter, kMonitoredReader };
constexpr Kind kKinds[] = {Kind::kWriter, Kind::kReader, Kind::kMonitoredWriter,
                           Kind::kMonitoredReader};

// ground@g ← base@old ← base@s ← image@own ← image; other@o is another ground, and cousin another
// image on base@s.
struct Scene {
  TemporaryDirectory directory{"/dev/shm"};
  const std::string ground = directory / "ground.pcow";
  const std::string other = directory / "other.pcow";
  const std::string path = directory / "image.pcow";
  std::string base_path = directory / "base.pcow";
  std::unique_ptr<Image> base;
  std::string model;      // of the image
  std::string own_model;  // of image@own

  Scene() {
    create(ground, nullptr);
    make(ground, 0, 4, 'g', "g");
    create(other, nullptr);
    make(other, 2, 5, 'h', "o");
    const BaseSpec on_ground = {ground, "g", 0};
    create(base_path, &on_ground);
    base = open_writer(base_path);
    put(base.get(), 0, 'p');
    MUST(base->snapshot("old"));
    put(base.get(), 1, 'q');
    MUST(base->snapshot("s"));
    put(base.get(), 1, 'r');
    const BaseSpec on_base = {base_path, "s", 0};
    create(path, &on_base);
    auto image = open_writer(path);
    put(image.get(), 5, 'o');
    MUST(image->snapshot("own"));
    put(image.get(), 6, 'n');
    own_model = MUST(look(image.get(), MUST(image->view("own")).get()));
    model = MUST(look(image.get(), nullptr));
    MUST(image->close());
  }

  static void make(const std::string& path, uint64_t first, uint64_t end, char value,
                   const std::string& snapshot) {
    auto image = open_writer(path);
    for (uint64_t block = first; block < end; block++) put(image.get(), block, value);
    MUST(image->snapshot(snapshot));
    MUST(image->close());
  }
};

struct Change {
  const char* name;
  std::function<void(Scene*)> happen;
};

std::vector<Change> changes() {
  const auto reuse = [](Scene* s) {
    for (int i = 0; i < 3; i++) MUST(s->base->sync());
    for (uint64_t block = 20; block < 40; block++) put(s->base.get(), block, 'x');
  };
  const auto commit = [](Scene* s) {
    const BaseSpec spec = {s->base_path, "s", 0};
    const std::string cousin = s->directory / "cousin.pcow";
    create(cousin, &spec);
    auto image = open_writer(cousin);
    put(image.get(), 2, 'c');
    MUST(image->commit_into(s->base.get(), "committed", false, nullptr));
    MUST(image->close());
  };
  return {
      {"nothing", [](Scene*) {}},
      {"it is written", [](Scene* s) { put(s->base.get(), 1, 'w'); }},
      {"a snapshot", [](Scene* s) { MUST(s->base->snapshot("new")); }},
      {"an older snapshot is deleted",
       [=](Scene* s) {
         MUST(s->base->remove("old", nullptr));
         reuse(s);
       }},
      {"a newer snapshot is deleted",
       [=](Scene* s) {
         MUST(s->base->snapshot("new"));
         put(s->base.get(), 2, 'y');
         MUST(s->base->remove("new", nullptr));
         reuse(s);
       }},
      {"a rollback",
       [=](Scene* s) {
         MUST(s->base->rollback("old"));
         reuse(s);
       }},
      {"it grows, and shrinks",
       [](Scene* s) {
         MUST(s->base->resize(2 * kSize));
         MUST(s->base->resize(kSize, true));
       }},
      {"it is flattened",
       [=](Scene* s) {
         MUST(s->base->rebase({}, false, nullptr));
         reuse(s);
       }},
      {"it gets another base",
       [=](Scene* s) {
         MUST(s->base->rebase({s->other, "o", 0}, true, nullptr));
         reuse(s);
       }},
      {"it gets another base, and the former one goes",
       [=](Scene* s) {
         MUST(s->base->rebase({s->other, "o", 0}, true, nullptr));
         std::filesystem::remove(s->ground);
         reuse(s);
       }},
      {"an image is committed into it", commit},
      {"it is compacted",
       [](Scene* s) {
         put(s->base.get(), 7, 0);
         MUST(s->base->compact(nullptr));
       }},
      {"checksums",
       [](Scene* s) {
         MUST(s->base->add_checksums(nullptr));
         MUST(s->base->remove_checksums());
       }},
      {"its guest ends", [](Scene* s) { MUST(s->base->close()); }},
      {"its guest ends, and comes again",
       [](Scene* s) {
         MUST(s->base->close());
         s->base = open_writer(s->base_path);
         put(s->base.get(), 9, 'z');
       }},
      {"it has another name",
       [=](Scene* s) {
         const std::string name = s->directory / "renamed.pcow";
         std::filesystem::rename(s->base_path, name);
         s->base_path = name;
         MUST(s->base->remove("old", nullptr));
         reuse(s);
       }},
      {"its file is deleted, and it is written all the same",
       [=](Scene* s) {
         std::filesystem::remove(s->base_path);
         MUST(s->base->remove("old", nullptr));
         reuse(s);
       }},
  };
}

// Descriptors as a mount hands them over. The mount closes them when they are sent; here they are
// closed as soon as they have been taken.
class Handover {
 public:
  void add(const std::string& path, bool write) {
    const int descriptor = open(path.c_str(), (write ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    CHECK(descriptor >= 0);
    if (write) {
      const struct flock whole = {F_WRLCK, SEEK_SET, 0, 1, 0};
      CHECK(fcntl(descriptor, F_OFD_SETLK, &whole) == 0);
    }
    files.push_back({path, descriptor});
  }
  // Then each number refers to another file.
  void let_go() {
    for (const GivenFile& file : files) {
      const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
      CHECK(dup3(null, file.descriptor, O_CLOEXEC) == file.descriptor);
      close(null);
    }
  }
  ~Handover() {
    for (const GivenFile& file : files) close(file.descriptor);
  }
  std::vector<GivenFile> files;
};

class Reader {
 public:
  Reader(Scene* scene, Kind kind) : scene_(scene), kind_(kind) {
    OpenOptions options;
    options.write = kind == Kind::kWriter || kind == Kind::kMonitoredWriter;
    options.observer = &failing;
    if (monitored()) {
      handover_.add(scene->path, options.write);
      handover_.add(scene->base_path, false);
      handover_.add(scene->ground, false);
      options.given = handover_.files;
    }
    image_ = MUST(Image::open(scene->path, options));
    handover_.let_go();
    own_ = MUST(image_->view("own"));
    // It remembers a little, and has the rest to look up.
    CHECK(MUST(image_->read(nullptr, 0, &first_, 1)) == 1);
  }

  // The right bytes, or an error.
  Result<void> look_again() {
    auto found = look(image_.get(), nullptr);
    if (!found) return found.error();
    if (*found != scene_->model) return Error(Code::kInvalid, "other bytes");
    found = look(image_.get(), own_.get());
    if (!found) return found.error();
    if (*found != scene_->own_model) return Error(Code::kInvalid, "other bytes in the snapshot");
    auto again = image_->view("own");
    if (!again) return again.error();
    found = look(image_.get(), again->get());
    if (!found) return found.error();
    if (*found != scene_->own_model)
      return Error(Code::kInvalid, "other bytes in the snapshot, opened again");
    return {};
  }

  // The answer of a mount that is asked for the files of the chain again.
  void ask_the_mount() {
    auto view = MUST(Image::open(scene_->path, {}));
    std::vector<std::string> paths;
    for (const LayerRef& layer : view->info().chain)
      if (layer.path != scene_->path && (paths.empty() || paths.back() != layer.path))
        paths.push_back(layer.path);
    Handover handover;
    for (const std::string& path : paths) handover.add(path, false);
    MUST(image_->give_bases(handover.files));
    handover.let_go();
  }

  Result<void> write() {
    if (kind_ == Kind::kReader || kind_ == Kind::kMonitoredReader) return {};
    FaultWork work;
    for (const uint64_t block : {1, 2, 11}) {
      auto extent = image_->make_writable(block * kBlock, {}, &work);
      if (!extent) return extent.error();
    }
    PCOW_TRY(try_put(image_.get(), 10, 'm'));
    scene_->model.replace(10 * kBlock, kBlock, kBlock, 'm');
    return {};
  }

  bool monitored() const {
    return kind_ == Kind::kMonitoredWriter || kind_ == Kind::kMonitoredReader;
  }
  Image& image() { return *image_; }
  Failing failing;

 private:
  Scene* const scene_;
  const Kind kind_;
  Handover handover_;
  std::unique_ptr<Image> image_;
  std::shared_ptr<View> own_;
  char first_ = 0;
};

void must_be_right(Reader* reader, const Change& change, Kind kind, const char* when) {
  auto outcome = reader->look_again();
  if (!outcome && outcome.error().code == Code::kBaseMissing && reader->monitored()) {
    reader->ask_the_mount();
    outcome = reader->look_again();
  }
  if (outcome) outcome = reader->write();
  if (outcome) outcome = reader->look_again();
  if (outcome) return;
  fprintf(stderr, "%s, under reader %d, %s: %s\n", change.name, static_cast<int>(kind), when,
          outcome.error().message.c_str());
  exit(1);
}

// Returns false if there are fewer such operations.
bool fail_for_a_while(const Change& change, Kind kind, FileOperation operation, int number) {
  Scene scene;
  Reader reader(&scene, kind);
  change.happen(&scene);
  Failing& failing = reader.failing;
  failing.kind = operation;
  failing.number = number;
  failing.armed = true;
  for (int round = 0; round < 3; round++) {
    auto outcome = reader.look_again();
    if (!outcome && outcome.error().code == Code::kInvalid) {
      fprintf(stderr, "%s, under reader %d, failure %d of kind %d, round %d: %s\n", change.name,
              static_cast<int>(kind), number, static_cast<int>(operation), round,
              outcome.error().message.c_str());
      exit(1);
    }
  }
  failing.armed = false;
  must_be_right(&reader, change, kind, "after a failure");
  MUST(reader.image().close());
  return failing.failed;
}

// The process has no descriptor left: the files that are open need none.
void without_descriptors(const Change& change, Kind kind) {
  Scene scene;
  Reader reader(&scene, kind);
  change.happen(&scene);
  rlimit before;
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none = {3, before.rlim_max};
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto outcome = reader.look_again();
  CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(outcome || outcome.error().code != Code::kInvalid);
  must_be_right(&reader, change, kind, "after a time without descriptors");
  MUST(reader.image().close());
}

// A base that is needed now, and is not at its path for a moment.
void away_for_a_moment(Kind kind) {
  Scene scene;
  Reader reader(&scene, kind);
  const Change change = {"its new base is away", [](Scene*) {}};
  MUST(scene.base->rebase({scene.other, "o", 0}, true, nullptr));
  std::filesystem::rename(scene.other, scene.directory / "away.pcow");
  for (int round = 0; round < 3; round++) FAILS(reader.look_again(), Code::kBaseMissing);
  std::filesystem::rename(scene.directory / "away.pcow", scene.other);
  must_be_right(&reader, change, kind, "when it is back");
  MUST(reader.image().close());
}

// The image itself changes while it has a reader, and a file that the reader then needs is absent
// or unreadable.
void own_changes(std::mt19937_64* random, FileOperation operation) {
  const std::vector<std::pair<const char*, std::function<void(Image*)>>> own = {
      {"rollback", [](Image* w) { MUST(w->rollback("own")); }},
      {"snapshot", [](Image* w) { MUST(w->snapshot("second")); }},
      {"deletion", [](Image* w) { MUST(w->remove("own", nullptr)); }},
      {"growth", [](Image* w) { MUST(w->resize(2 * kSize)); }},
      {"rebase", [](Image* w) { MUST(w->rebase({}, false, nullptr)); }},
  };
  for (const auto& [name, happen] : own) {
    for (int number = 1 + static_cast<int>((*random)() % static_cast<uint64_t>(every()));;
         number += every()) {
      Scene scene;
      Failing failing;
      OpenOptions options;
      options.observer = &failing;
      auto reader = MUST(Image::open(scene.path, options));
      CHECK(MUST(look(reader.get(), nullptr)) == scene.model);
      auto writer = open_writer(scene.path);
      happen(writer.get());
      for (int i = 0; i < 3; i++) MUST(writer->sync());
      for (uint64_t block = 20; block < 30; block++) put(writer.get(), block, 'x');
      put(writer.get(), 7, '3');
      scene.model = MUST(look(writer.get(), nullptr));
      failing.kind = operation;
      failing.number = number;
      failing.armed = true;
      for (int round = 0; round < 3; round++) {
        auto found = look(reader.get(), nullptr);
        CHECK(!found || *found == scene.model);
        for (const char* snapshot : {"own", "second"}) {
          auto view = reader->view(snapshot);
          if (view) (void)look(reader.get(), view->get());
        }
      }
      failing.armed = false;
      CHECK(MUST(look(reader.get(), nullptr)) == scene.model);
      if (auto view = writer->view("own"))
        CHECK(MUST(look(reader.get(), MUST(reader->view("own")).get())) ==
              MUST(look(writer.get(), view->get())));
      MUST(writer->close());
      if (!failing.failed) break;
    }
    printf("%s\n", name);
  }
}

// A compaction cannot write its superblock: a reader in another process still uses the tables that
// it has loaded. No later operation may use the blocks again before that reader can see a new
// generation.
void compaction_that_told_nobody() {
  const TemporaryDirectory directory{"/dev/shm"};
  const std::string path = directory / "image.pcow";
  create(path, nullptr);
  Failing failing;
  failing.kind = FileOperation::kWrite;
  OpenOptions options;
  options.write = true;
  options.observer = &failing;
  auto writer = MUST(Image::open(path, options));
  for (uint64_t block = 0; block < 8; block++) put(writer.get(), block, 0);
  MUST(writer->snapshot("zeros"));
  auto reader = MUST(Image::open(path, {}));
  const auto view = MUST(reader->view("zeros"));
  const std::string zeros(kLooked, 0);
  CHECK(MUST(look(reader.get(), view.get())) == zeros);
  failing.armed = true;
  FAILS(writer->compact(nullptr), Code::kIo);
  failing.armed = false;
  CHECK(failing.failed);
  // Refused, but only after all deletions are finished.
  FAILS(writer->resize(1, true), Code::kInvalid);
  for (int i = 0; i < 3; i++) MUST(writer->sync());
  for (uint64_t block = 0; block < 40; block++) put(writer.get(), block, 'x');
  CHECK(MUST(look(reader.get(), view.get())) == zeros);
  CHECK(MUST(look(reader.get(), MUST(reader->view("zeros")).get())) == zeros);
  MUST(writer->close());
  CHECK(MUST(look(reader.get(), view.get())) == zeros);
}

// A superblock whose write failed is on the disk nevertheless. No process uses it, also not after a
// crash, and every process notices the next one.
void superblock_of_which_half_came() {
  const TemporaryDirectory directory{"/dev/shm"};
  const std::string path = directory / "image.pcow";
  create(path, nullptr);
  HalfASuperblock disk;
  OpenOptions options;
  options.write = true;
  options.observer = &disk;
  auto writer = MUST(Image::open(path, options));
  put(writer.get(), 0, 'a');
  MUST(writer->snapshot("a"));
  put(writer.get(), 0, 'b');
  auto reader = MUST(Image::open(path, {}));
  CHECK(MUST(look(reader.get(), nullptr))[0] == 'b');
  disk.armed = true;
  FAILS(writer->rollback("a"), Code::kIo);
  CHECK(!disk.armed);
  CHECK(MUST(look(reader.get(), nullptr))[0] == 'b');
  MUST(writer->rollback("a"));
  CHECK(MUST(look(reader.get(), nullptr))[0] == 'a');
  MUST(writer->close());
  CHECK(MUST(look(reader.get(), nullptr))[0] == 'a');
}

}  // namespace

int main() {
  compaction_that_told_nobody();
  superblock_of_which_half_came();
  std::mt19937_64 random(test_seed());
  for (const Change& change : changes()) {
    for (const Kind kind : kKinds) {
      for (const FileOperation operation : {FileOperation::kRead, FileOperation::kMap}) {
        int number = 1 + static_cast<int>(random() % static_cast<uint64_t>(every()));
        while (fail_for_a_while(change, kind, operation, number)) number += every();
      }
      without_descriptors(change, kind);
    }
  }
  for (const Kind kind : {Kind::kWriter, Kind::kReader}) away_for_a_moment(kind);
  own_changes(&random, FileOperation::kRead);
  own_changes(&random, FileOperation::kMap);
  return 0;
}
