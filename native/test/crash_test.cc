// Power cuts. The engine works on an image, and every file operation goes to a simulated disk as well. At every sync, and
// now and then in between, states of the disk that a power cut could leave at this moment are made into files, and
// opened as after a new start of the host: read-only, then for writing. Each must open, and hold
//   - every sector as it was at the last sync that returned, or as written since; nothing of another place or time
//   - every snapshot that returned, bit for bit; one that did not return whole, or not at all
// and go on working. Some recoveries have their power cut as well; and some workloads a process that is killed.
//
//   crash_test [EFFORT]     a number: how many times the work of the short run
//
// In a last part the disk lies: a sync of the engine does nothing, and so an ordering rule of docs/format.md is broken. The
// simulator must find each breach.
#include <sys/wait.h>

#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "../engine/superblock.h"
#include "check.h"
#include "disk_simulator.h"

using namespace pcow;

namespace {

constexpr size_t kSector = 512;
constexpr size_t kBudget = 10;  // states at each sync
constexpr uint32_t kBlockSizes[] = {4096, 16384, 65536};
using Stamps = std::vector<uint64_t>;  // what each sector holds; 0: zeros

struct Content {
  Stamps active;
  std::map<std::string, Stamps> snapshots;
  friend bool operator==(const Content&, const Content&) = default;
};

// What a disk may hold: `active` gives the stamps that each sector may have.
struct World {
  std::vector<std::set<uint64_t>> active;
  std::map<std::string, Stamps> snapshots;
};

World exactly(const Content& content) {
  World world;
  for (const uint64_t stamp : content.active) world.active.push_back({stamp});
  world.snapshots = content.snapshots;
  return world;
}

bool allows(const World& world, const Content& content) {
  if (world.snapshots != content.snapshots || world.active.size() != content.active.size()) return false;
  for (size_t i = 0; i < content.active.size(); i++)
    if (!world.active[i].contains(content.active[i])) return false;
  return true;
}

// A sector says which write made it, and where it belongs.
void fill_sector(uint64_t stamp, uint64_t sector, uint8_t* bytes) {
  uint64_t words[kSector / 8];
  for (size_t i = 0; i < std::size(words); i++) words[i] = stamp * 0x9e3779b97f4a7c15u + i;
  words[0] = stamp;
  words[1] = sector;
  memcpy(bytes, words, kSector);
}

std::optional<uint64_t> stamp_of(const uint8_t* bytes, uint64_t sector) {
  static const uint8_t zeros[kSector] = {};
  if (memcmp(bytes, zeros, kSector) == 0) return 0;
  uint64_t stamp;
  memcpy(&stamp, bytes, sizeof stamp);
  uint8_t expected[kSector];
  fill_sector(stamp, sector, expected);
  if (memcmp(bytes, expected, kSector) != 0) return std::nullopt;
  return stamp;
}

struct Lie {
  std::string operation;
  int sync = 0;  // number within the operation
};

// What a run counts, and where it is, for the sentence about a failure.
struct Run {
  std::mt19937_64 random;
  uint64_t states = 0;
  uint64_t kills = 0;
  uint64_t stamps = 0;
  size_t budget = 0;
  std::string where;
  std::string operation;
  std::optional<Lie> lie;

  [[noreturn]] void fail(const std::string& what) const {
    fprintf(stderr, "%s, in %s, state %llu: %s\n", where.c_str(), operation.c_str(),
            static_cast<unsigned long long>(states), what.c_str());
    exit(1);
  }
  template <typename T>
  T must(Result<T> result, const char* what) const {
    if (!result) fail(std::string(what) + ": " + result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
  }
};

Result<std::unique_ptr<Image>> open_image(const std::string& path, bool write, FileObserver* observer) {
  OpenOptions options;
  options.write = write;
  options.observer = observer;
  return Image::open(path, options);
}

Stamps read_stamps(const Run& run, const Image& image, const View* view, const std::string& what) {
  const uint64_t size = view ? image.view_size(*view) : image.size();
  std::vector<uint8_t> bytes(size);
  if (run.must(image.read(view, 0, bytes.data(), size), "read") != size) run.fail(what + " is short");
  Stamps stamps(size / kSector);
  for (size_t i = 0; i < stamps.size(); i++) {
    const auto stamp = stamp_of(bytes.data() + i * kSector, i);
    if (!stamp) run.fail(what + " holds in sector " + std::to_string(i) + " what nobody wrote there");
    stamps[i] = *stamp;
  }
  return stamps;
}

Content read_content(const Run& run, const Image& image) {
  Content content;
  content.active = read_stamps(run, image, nullptr, "the active layer");
  for (const SnapshotInfo& info : run.must(image.snapshots(true), "snapshots")) {
    const auto view = run.must(image.view(info.name), "view");
    content.snapshots[info.name] = read_stamps(run, image, view.get(), "snapshot " + info.name);
  }
  return content;
}

std::string difference(const World& world, const Content& content) {
  for (const auto& [name, stamps] : world.snapshots) {
    const auto found = content.snapshots.find(name);
    if (found == content.snapshots.end()) return "snapshot " + name + " is missing";
    if (found->second != stamps) return "snapshot " + name + " has changed";
  }
  if (content.snapshots.size() != world.snapshots.size()) return "there is a snapshot too many";
  if (content.active.size() != world.active.size()) return "the size is wrong";
  for (size_t i = 0; i < content.active.size(); i++)
    if (!world.active[i].contains(content.active[i]))
      return "sector " + std::to_string(i) + " holds stamp " + std::to_string(content.active[i]) + " instead of " +
             std::to_string(*world.active[i].rbegin());
  return "nothing";
}

Result<void> write_sectors(Image* image, Content* content, uint64_t first, uint64_t count, Run* run) {
  std::vector<uint8_t> bytes(count * kSector);
  const uint64_t stamp = ++run->stamps;
  for (uint64_t i = 0; i < count; i++) {
    fill_sector(stamp, first + i, bytes.data() + i * kSector);
    content->active[first + i] = stamp;
  }
  return image->write(first * kSector, bytes.data(), bytes.size());
}

// Stands at the engine's door to one file.
class PowerCuts : public FileObserver {
 public:
  PowerCuts(Run* run, const TemporaryDirectory* directory, size_t budget, bool nested)
      : run_(run), directory_(directory), budget_(budget), nested_(nested) {}

  std::vector<World> worlds;  // what a state may hold at present

  void watch(const std::string& path) {
    path_ = path;
    disk_.emplace(DiskState::of_file(path));
  }
  void begin(const std::string& operation) {
    if (!nested_) run_->operation = operation;
    operation_ = operation;
    syncs_ = 0;
  }
  // The process dies before that many operations more.
  void kill_after(uint64_t operations) { left_ = operations; }
  bool killed() const { return killed_; }
  // The process is dead; its file, as the page cache has it, goes on as another one.
  void go_on_as(const std::string& path) {
    disk_->cached().write_to(path);
    path_ = path;
    killed_ = false;
    left_ = kNever;
  }

  int before(FileOperation operation, const std::string& path, uint64_t offset, uint64_t length,
             const void* data) override {
    if (path != path_ || operation == FileOperation::kRead || operation == FileOperation::kMap) return 0;
    if (left_ != kNever && left_-- == 0) killed_ = true;
    if (killed_) {
      left_ = 0;
      return EIO;
    }
    if (operation == FileOperation::kSync) {
      cut(budget_);
      const bool lies = run_->lie && run_->lie->operation == operation_ && run_->lie->sync == syncs_++;
      if (!lies) disk_->sync();
      return 0;
    }
    disk_->apply(operation, offset, length, data);
    if (run_->random() % 16 == 0) cut(2);
    return 0;
  }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};

  void cut(size_t budget) {
    disk_->sample(budget, &run_->random, [&](DiskState state) { check(std::move(state)); });
  }
  void check(DiskState state);
  void go_on(const std::string& path, Content content);
  void cut_recovery(const DiskState& state);

  Run* run_;
  const TemporaryDirectory* directory_;
  const size_t budget_;
  const bool nested_;
  std::string path_;
  std::optional<DiskSimulator> disk_;
  std::string operation_;
  int syncs_ = 0;
  uint64_t left_ = kNever;
  bool killed_ = false;
};

void PowerCuts::check(DiskState state) {
  run_->states++;
  state.forget_boot();
  const std::string path = *directory_ / (nested_ ? "nested-state.pcow" : "state.pcow");
  state.write_to(path);
  Content content;
  {
    auto reader = run_->must(open_image(path, false, nullptr), "open for reading");
    content = read_content(*run_, *reader);
  }
  bool allowed = false;
  for (const World& world : worlds) allowed = allowed || allows(world, content);
  if (!allowed) {
    std::string why;
    for (const World& world : worlds)
      why += (why.empty() ? "" : "; or, if what was under way is over: ") + difference(world, content);
    run_->fail(why);
  }
  if (!nested_ && run_->random() % 24 == 0) cut_recovery(state);
  go_on(path, std::move(content));
}

// What was recovered for reading is recovered for writing as well, and the image can be worked with.
void PowerCuts::go_on(const std::string& path, Content content) {
  auto image = run_->must(open_image(path, true, nullptr), "open for writing");
  if (read_content(*run_, *image) != content) run_->fail("opened for writing it holds something else");
  for (int i = 0; i < 5; i++) {
    const uint64_t first = run_->random() % content.active.size();
    const uint64_t count = std::min<uint64_t>(1 + run_->random() % 12, content.active.size() - first);
    if (run_->random() % 4 == 0) {
      run_->must(image->discard(first * kSector, count * kSector), "discard");
      std::fill_n(content.active.begin() + static_cast<ptrdiff_t>(first), count, 0);
    } else {
      run_->must(write_sectors(image.get(), &content, first, count, run_), "write");
    }
  }
  if (run_->random() % 8 == 0) {
    while (!content.snapshots.empty()) {
      run_->must(image->remove(content.snapshots.begin()->first, nullptr), "remove");
      content.snapshots.erase(content.snapshots.begin());
    }
  }
  if (read_content(*run_, *image) != content) run_->fail("after further work it holds something else");
  run_->must(image->close(), "close");
  image = run_->must(open_image(path, false, nullptr), "open again");
  if (read_content(*run_, *image) != content) run_->fail("after closing it holds something else");
}

// Cuts the power again, while the image recovers and after.
void PowerCuts::cut_recovery(const DiskState& state) {
  const std::string path = *directory_ / "recovering.pcow";
  state.write_to(path);
  PowerCuts cuts(run_, directory_, 6, true);
  cuts.worlds = worlds;
  cuts.watch(path);
  cuts.begin("recovery");
  auto image = run_->must(open_image(path, true, &cuts), "open for writing, with power cuts");
  run_->must(image->sync(), "sync");
  cuts.worlds = {exactly(read_content(*run_, *image))};
  run_->must(image->close(), "close");
}

// How often, of a hundred steps, what is done.
struct Profile {
  const char* name;
  int write, discard, sync, snapshot, remove, rollback, clone, resize, reopen;
  bool base = false;   // the image stands on a base
  bool kills = false;  // the process is killed now and then
};

constexpr Profile kProfiles[] = {
    {"expansion", 70, 0, 25, 0, 0, 0, 0, 0, 5},
    {"copy-on-write", 60, 4, 20, 10, 0, 0, 0, 0, 6, true},
    {"discard and reuse", 45, 30, 20, 2, 0, 0, 0, 0, 3},
    {"snapshots", 45, 10, 10, 25, 5, 0, 0, 0, 5},
    {"deletion and merge", 45, 10, 8, 18, 15, 4, 0, 0, 0},
    {"several children", 40, 8, 8, 14, 14, 14, 0, 0, 2, true},
    {"clones", 50, 8, 10, 8, 8, 0, 12, 0, 4},
    {"growing", 50, 10, 12, 8, 8, 0, 0, 8, 4},
    {"killed processes", 50, 10, 14, 8, 8, 4, 2, 2, 2, true, true},
};

class Workload {
 public:
  Workload(Run* run, const Profile& profile, uint32_t block_size)
      : run_(run), profile_(profile), block_size_(block_size), cuts_(run, &directory_, run->budget, false) {}

  void go(int steps) {
    prepare();
    for (int i = 0; i < steps; i++) {
      run_->where =
          std::string(profile_.name) + ", blocks of " + std::to_string(block_size_) + ", step " + std::to_string(i);
      if (profile_.kills && run_->random() % 3 == 0) cuts_.kill_after(run_->random() % 12);
      step();
    }
    attempt("close", now_, {world_}, [&] { return image_->close(); });
  }

 private:
  uint64_t below(uint64_t limit) { return run_->random() % limit; }

  void prepare() {
    const std::string path = directory_ / "image.pcow";
    CreateOptions options;
    options.size = std::max<uint64_t>(65536, 9 * block_size_ + 4096);
    options.block_size = block_size_;
    if (profile_.base) {
      const std::string base = directory_ / "base.pcow";
      run_->must(create_image(base, options), "create");
      now_.active.resize(options.size / kSector);
      auto image = run_->must(open_image(base, true, nullptr), "open");
      for (int i = 0; i < 10; i++) {
        const uint64_t first = below(now_.active.size());
        const uint64_t count = std::min<uint64_t>(1 + below(40), now_.active.size() - first);
        run_->must(write_sectors(image.get(), &now_, first, count, run_), "write");
      }
      run_->must(image->snapshot("ground"), "snapshot");
      run_->must(image->close(), "close");
      options.has_base = true;
      options.base.path = base;
      options.base.snapshot = "ground";
    }
    run_->must(create_image(path, options), "create");
    now_.active.resize(options.size / kSector);
    world_ = exactly(now_);
    cuts_.watch(path);
    cuts_.worlds = {world_};
    cuts_.begin("open");
    image_ = run_->must(open_image(path, true, &cuts_), "open");
  }

  // Does one thing, which takes the content from `now_` to `after`. While it is done the disk may hold any of `meanwhile`;
  // true: it was done, and the caller says what the disk may hold from now on.
  template <typename Do>
  bool attempt(const char* name, const Content& after, std::vector<World> meanwhile, const Do& what) {
    cuts_.begin(name);
    cuts_.worlds = std::move(meanwhile);
    auto outcome = what();
    if (cuts_.killed()) {
      revive(after);
      return false;
    }
    run_->must(std::move(outcome), name);
    now_ = after;
    return true;
  }

  // The process was killed in the middle. Nothing is lost; what was being done may be seen or not.
  void revive(const Content& after) {
    run_->kills++;
    const std::string path = directory_ / ("image" + std::to_string(run_->kills) + ".pcow");
    cuts_.go_on_as(path);
    image_.reset();
    cuts_.begin("open after a kill");
    image_ = run_->must(open_image(path, true, &cuts_), "open after a kill");
    const Content found = read_content(*run_, *image_);
    if (found.snapshots != now_.snapshots && found.snapshots != after.snapshots)
      run_->fail("a killed process has changed snapshots");
    if (found.active.size() != now_.active.size() && found.active.size() != after.active.size())
      run_->fail("a killed process has changed the size");
    for (size_t i = 0; i < found.active.size(); i++) {
      const bool as_before = i < now_.active.size() && found.active[i] == now_.active[i];
      if (!as_before && found.active[i] != after.active[i]) run_->fail("a killed process has lost a write");
    }
    now_ = found;
    // Whichever of the worlds it is, it is on the disk now; but for what was written and not synced.
    World world = exactly(now_);
    for (const World& possible : cuts_.worlds) {
      if (possible.active.size() != world.active.size() || possible.snapshots != world.snapshots) continue;
      for (size_t i = 0; i < world.active.size(); i++)
        world.active[i].insert(possible.active[i].begin(), possible.active[i].end());
    }
    settle(std::move(world));
  }

  void settle(World world) {
    world_ = std::move(world);
    cuts_.worlds = {world_};
  }

  std::string some_snapshot() {
    auto at = now_.snapshots.begin();
    std::advance(at, static_cast<ptrdiff_t>(below(now_.snapshots.size())));
    return at->first;
  }

  void step() {
    int dice = static_cast<int>(below(100));
    if ((dice -= profile_.write) < 0) return write();
    if ((dice -= profile_.discard) < 0) return discard();
    if ((dice -= profile_.sync) < 0) return sync();
    if ((dice -= profile_.snapshot) < 0) return now_.snapshots.size() < 5 ? snapshot() : remove();
    if ((dice -= profile_.remove) < 0) return now_.snapshots.empty() ? snapshot() : remove();
    if ((dice -= profile_.rollback) < 0) return now_.snapshots.empty() ? snapshot() : rollback();
    if ((dice -= profile_.clone) < 0) return clone();
    if ((dice -= profile_.resize) < 0) return resize();
    reopen();
  }

  void pick(uint64_t* first, uint64_t* count) {
    const uint64_t block = block_size_ / kSector;
    *first = below(now_.active.size());
    *count = below(3) ? 1 + below(10) : 1 + below(2 * block);
    if (below(3) == 0) {  // whole blocks
      *first = *first / block * block;
      *count = block * (1 + below(2));
    }
    *count = std::min(*count, now_.active.size() - *first);
  }

  void write() {
    uint64_t first, count;
    pick(&first, &count);
    Content after = now_;
    World world = world_;
    for (uint64_t i = first; i < first + count; i++) world.active[i].insert(run_->stamps + 1);
    if (attempt("write", after, {world}, [&] { return write_sectors(image_.get(), &after, first, count, run_); })) {
      now_ = after;
      settle(std::move(world));
    }
  }

  void discard() {
    uint64_t first, count;
    pick(&first, &count);
    Content after = now_;
    World world = world_;
    for (uint64_t i = first; i < first + count; i++) {
      after.active[i] = 0;
      world.active[i].insert(0);
    }
    if (attempt("discard", after, {world}, [&] { return image_->discard(first * kSector, count * kSector); }))
      settle(std::move(world));
  }

  void sync() {
    if (attempt("sync", now_, {world_}, [&] { return image_->sync(); })) settle(exactly(now_));
  }

  void snapshot() {
    Content after = now_;
    const std::string name = "s" + std::to_string(names_++);
    after.snapshots[name] = now_.active;
    if (attempt("snapshot", after, {world_, exactly(after)}, [&] { return image_->snapshot(name); }))
      settle(exactly(after));
  }

  void remove() {
    Content after = now_;
    const std::string name = some_snapshot();
    after.snapshots.erase(name);
    World world = world_;
    world.snapshots.erase(name);
    if (attempt("remove", after, {world_, world}, [&] { return image_->remove(name, nullptr); }))
      settle(std::move(world));
  }

  void rollback() {
    Content after = now_;
    const std::string name = some_snapshot();
    after.active = now_.snapshots[name];
    if (attempt("rollback", after, {world_, exactly(after)}, [&] { return image_->rollback(name); }))
      settle(exactly(after));
  }

  void clone() {
    if (now_.snapshots.size() >= 6) return remove();
    Content after = now_;
    const std::string name = "c" + std::to_string(names_++);
    after.snapshots[name] = now_.active;
    bool made = false;
    const auto freeze = [&]() -> Result<void> {
      PCOW_TRY(image_->freeze_for_clone(name));
      made = image_->layer_id(name).ok();
      if (!made) after.snapshots.erase(name);
      return {};
    };
    if (!attempt("freeze for a clone", after, {world_, exactly(after)}, freeze)) return;
    now_ = after;
    if (made) world_ = exactly(after);
    settle(world_);
  }

  void resize() {
    if (now_.active.size() * kSector > 40 * uint64_t{block_size_}) return write();
    Content after = now_;
    after.active.resize(now_.active.size() + 8 * (1 + below(40)));
    World world = world_;
    world.active.resize(after.active.size(), {0});
    if (attempt("resize", after, {world_, world}, [&] { return image_->resize(after.active.size() * kSector); }))
      settle(std::move(world));
  }

  void reopen() {
    if (!attempt("close", now_, {world_}, [&] { return image_->close(); })) return;
    settle(exactly(now_));
    const std::string path = image_->info().path;
    image_.reset();
    Result<void> outcome;
    attempt("open", now_, {world_}, [&]() -> Result<void> {
      auto opened = open_image(path, true, &cuts_);
      if (!opened) return opened.error();
      image_ = std::move(*opened);
      return {};
    });
  }

  Run* run_;
  const Profile& profile_;
  const uint32_t block_size_;
  TemporaryDirectory directory_{"/dev/shm"};  // states are written by the thousand, and nothing here is to last
  PowerCuts cuts_;
  std::unique_ptr<Image> image_;
  Content now_;  // as every process sees it
  World world_;  // what a power cut may leave of it
  int names_ = 0;
};

void run_all(Run* run, int steps) {
  for (const Profile& profile : kProfiles)
    for (const uint32_t block_size : kBlockSizes) Workload(run, profile, block_size).go(steps);
}

#if !defined(__SANITIZE_THREAD__)
// Ordering rules of docs/format.md that hang on a single sync: the disk lies about one of them at a time.
struct BrokenRule {
  const char* profile;
  Lie lie;
  const char* rule;
};
const BrokenRule kBrokenRules[] = {
    {"expansion", {"sync", 0}, "data is on the disk before its durable bits"},
    {"copy-on-write", {"sync", 1}, "durable bits are on the disk before a sync returns"},
    {"snapshots",
     {"snapshot", 2},
     "a directory, or a frozen layer, is on the disk before the superblock that names, or seals, it"},
    {"snapshots", {"snapshot", 4}, "the seal is on the disk before a snapshot returns"},
    {"deletion and merge", {"remove", 0}, "a directory is on the disk before the superblock that names it"},
    {"deletion and merge", {"remove", 1}, "a superblock is on the disk before what the one before named is freed"},
    {"several children", {"rollback", 0}, "a new table is on the disk before the superblock that names it"},
    {"growing", {"resize", 1}, "the entries of a longer table are on the disk before the superblock that names it"},
    {"killed processes",
     {"open after a kill", 0},
     "what a killed writer left is on the disk before anything is punched"},
};

// Whether a state is found in which the broken rule breaks a promise. In a process of its own, for that is how a failure
// ends.
bool is_found(const BrokenRule& broken, uint64_t seed) {
  fflush(nullptr);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(freopen("/dev/null", "w", stderr));
    Run run;
    run.random.seed(seed);
    run.budget = kBudget;
    run.lie = broken.lie;
    for (int round = 0; round < 40; round++)
      for (const Profile& profile : kProfiles)
        if (strcmp(profile.name, broken.profile) == 0)
          for (const uint32_t block_size : kBlockSizes) Workload(&run, profile, block_size).go(20);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  return WEXITSTATUS(status) == 1;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const int effort = argc > 1 ? atoi(argv[1]) : 1;
  // The thread sanitizer makes this many times slower, and finds nothing in a program of one thread.
#if defined(__SANITIZE_THREAD__)
  constexpr int kSteps = 1;
#elif defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 4;
#else
  constexpr int kSteps = 20;
#endif
  Run run;
  const uint64_t seed = test_seed();
  run.random.seed(seed);
  run.budget = kBudget;
  for (int round = 0; round < effort; round++) run_all(&run, kSteps);
  printf("%llu states, %llu killed processes\n", static_cast<unsigned long long>(run.states),
         static_cast<unsigned long long>(run.kills));
#if !defined(__SANITIZE_THREAD__)
  for (const BrokenRule& broken : kBrokenRules) {
    if (is_found(broken, seed)) continue;
    fprintf(stderr, "a breach of this rule is not found: %s\n", broken.rule);
    return 1;
  }
  printf("%zu broken rules found\n", std::size(kBrokenRules));
#endif
  return 0;
}
