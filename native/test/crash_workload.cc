#include "crash_workload.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "../engine/check.h"
#include "../engine/scrub.h"
#include "../engine/superblock.h"
#include "check.h"
#include "disk_simulator.h"

using namespace pcow;

namespace {

constexpr size_t kSector = 512;
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

Result<std::unique_ptr<Image>> open_image(const std::string& path, bool write, FileObserver* observer) {
  OpenOptions options;
  options.write = write;
  options.observer = observer;
  return Image::open(path, options);
}

// What has checksums has the right ones; `whole`: and a layer that has some has them all.
void must_have_checksums(const Run& run, const Image& image, bool whole) {
  const ScrubReport report = run.must(image.scrub(nullptr), "scrub");
  if (report.damages) run.fail("the scrub finds: " + report.findings.front().message);
  for (const ScrubbedLayer& layer : report.layers)
    if (whole && layer.has_checksums && layer.missing) run.fail("checksums are missing");
}

// The check finds nothing: neither in what a crash may leave, nor in what a writer has closed.
void must_be_sound(const Run& run, const std::string& path) {
  const CheckReport report = run.must(check_image(path, {}, nullptr), "check");
  if (report.damages || report.leaks) run.fail("the check finds: " + report.findings.front().message);
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
  // Does something else at a moment when another thread could: after a sync has taken down what it covers.
  std::function<void()> interrupt;
  bool checksums = false;        // some layers have them
  bool whole_checksums = false;  // of a layer, all are made at once, and it takes nothing in later

  void watch(const std::string& path) {
    path_ = path;
    disk_.emplace(DiskState::of_file(path));
  }
  void begin(const std::string& operation) {
    if (!nested_) run_->operation = operation;
  }
  // The image's base, where it is written as well: every state of the image comes with one of the base's disk.
  void watch_base(const std::string& path) {
    base_path_ = path;
    base_disk_.emplace(DiskState::of_file(path));
  }
  // What snapshots of that base hold: those that it must have, and one that may be there already.
  std::map<std::string, Stamps> base_snapshots;
  std::map<std::string, Stamps> base_coming;
  // The file system has no room for a longer file: blocks come from what is free in it.
  bool full = false;
  // The process dies before that many operations more.
  void kill_after(uint64_t operations) { left_ = operations; }
  bool killed() const { return killed_; }
  // A process stores into its mapping of the file: no operation of the engine.
  void store_through_mapping(uint64_t offset, uint64_t length, const uint8_t* data) {
    if (!disk_->has_space(offset, length)) run_->fail("a store through a mapping may find the disk full");
    disk_->apply(FileOperation::kWrite, offset, length, data);
    if (run_->random() % 8 == 0) cut(2);
  }
  // The process is dead; its file, as the page cache has it, goes on as another one.
  void go_on_as(const std::string& path) {
    disk_->cached().write_to(path);
    path_ = path;
    killed_ = false;
    left_ = kNever;
  }

  int before(FileOperation operation, const std::string& path, uint64_t offset, uint64_t length,
             const void* data) override {
    if (base_disk_ && path == base_path_) {
      if (operation != FileOperation::kRead && operation != FileOperation::kMap)
        before_in_base(operation, offset, length, data);
      return 0;
    }
    if (path != path_) return 0;
    if (full && operation == FileOperation::kResize) return ENOSPC;
    if (const int err = fault_of(operation)) return err;
    if (operation == FileOperation::kRead || operation == FileOperation::kMap) return 0;
    if (left_ != kNever && left_-- == 0) killed_ = true;
    if (killed_) {
      left_ = 0;
      return EIO;
    }
    if (operation == FileOperation::kSync) {
      cut(budget_);
      disk_->sync(offset, length);
      // Not in what is done meanwhile itself.
      if (auto meanwhile = std::exchange(interrupt, nullptr)) {
        meanwhile();
        interrupt = std::move(meanwhile);
      }
      return 0;
    }
    if (operation == FileOperation::kStore && !disk_->has_space(offset, length))
      run_->fail("a store into a table may find the disk full");
    disk_->apply(operation, offset, length, data);
    if (run_->random() % 16 == 0) cut(2);
    return 0;
  }

  size_t step(FileOperation, size_t length) override {
    if (!run_->interrupts || run_->random() % 3) return length;
    return run_->random() % 2 ? 0 : 1 + run_->random() % length;
  }

  // The machine is well again. Says whether a fault has struck since this was last asked; `sync`: it was a sync that failed.
  bool recover(bool* sync) {
    *sync = sync_failed_;
    sync_failed_ = false;
    return std::exchange(faulty_, false);
  }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};

  void before_in_base(FileOperation operation, uint64_t offset, uint64_t length, const void* data) {
    if (operation == FileOperation::kSync) {
      cut(budget_);
      base_disk_->sync(offset, length);
    } else {
      base_disk_->apply(operation, offset, length, data);
      if (run_->random() % 16 == 0) cut(2);
    }
  }
  void check_base();
  // The errno of the run's fault, where this is the operation that it strikes, or 0.
  int fault_of(FileOperation operation) {
    Fault& fault = run_->fault;
    const bool needs_space = operation == FileOperation::kWrite || operation == FileOperation::kAllocate ||
                             operation == FileOperation::kResize;
    const bool eligible = fault.err == ENOSPC   ? needs_space
                          : fault.err == ENOMEM ? operation == FileOperation::kMap
                                                : fault.err != 0 && operation != FileOperation::kStore;
    if (nested_ || !eligible) return 0;
    if (faulty_ && fault.lasts) return fault.err;
    if (fault.struck || fault.operation-- > 0) return 0;
    fault.struck = faulty_ = true;
    sync_failed_ = operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
    return fault.err;
  }

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
  std::string base_path_;
  std::optional<DiskSimulator> base_disk_;
  uint64_t left_ = kNever;
  bool killed_ = false;
  bool faulty_ = false;
  bool sync_failed_ = false;
};

void PowerCuts::check(DiskState state) {
  run_->states++;
  state.forget_boot();
  const std::string path = *directory_ / (nested_ ? "states/nested-state.pcow" : "states/state.pcow");
  state.write_to(path);
  if (base_disk_) check_base();
  must_be_sound(*run_, path);
  Content content;
  {
    auto reader = run_->must(open_image(path, false, nullptr), "open for reading");
    content = read_content(*run_, *reader);
    must_have_checksums(*run_, *reader, whole_checksums);
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

// Makes the base of the state to be checked: its disk may be in any state, independently of the image's.
void PowerCuts::check_base() {
  std::vector<DiskState> states;
  base_disk_->sample(4, &run_->random, [&](DiskState state) { states.push_back(std::move(state)); });
  DiskState& chosen = states[run_->random() % states.size()];
  chosen.forget_boot();
  const std::string path = *directory_ / "states/base.pcow";
  chosen.write_to(path);
  auto base = run_->must(open_image(path, false, nullptr), "open the base");
  const Content content = read_content(*run_, *base);
  for (const auto& [name, stamps] : base_snapshots)
    if (!content.snapshots.contains(name)) run_->fail("the base has lost its snapshot " + name);
  for (const auto& [name, stamps] : content.snapshots) {
    const auto known = base_snapshots.find(name);
    const auto coming = base_coming.find(name);
    if ((known == base_snapshots.end() || known->second != stamps) &&
        (coming == base_coming.end() || coming->second != stamps))
      run_->fail("the base's snapshot " + name + " is wrong");
  }
}

// What was recovered for reading is recovered for writing as well, and the image can be worked with.
void PowerCuts::go_on(const std::string& path, Content content) {
  auto image = run_->must(open_image(path, true, nullptr), "open for writing");
  if (read_content(*run_, *image) != content) run_->fail("opened for writing it holds something else");
  for (int i = 0; i < 5; i++) {
    const uint64_t first = run_->random() % content.active.size();
    const uint64_t count = std::min<uint64_t>(1 + run_->random() % 12, content.active.size() - first);
    if (run_->random() % 4 == 0) {
      // What is new to a mapping is not written, and must read as before.
      FaultWork work;
      run_->must(image->make_writable(first * kSector, {.ahead = count * kSector}, &work), "fault");
    } else if (run_->random() % 4 == 0) {
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
  if (checksums && run_->random() % 4 == 0) run_->must(image->add_checksums(nullptr), "add checksums");
  if (read_content(*run_, *image) != content) run_->fail("after further work it holds something else");
  run_->must(image->close(), "close");
  must_be_sound(*run_, path);
  image = run_->must(open_image(path, false, nullptr), "open again");
  if (read_content(*run_, *image) != content) run_->fail("after closing it holds something else");
}

// Cuts the power again, while the image recovers and after.
void PowerCuts::cut_recovery(const DiskState& state) {
  const std::string path = *directory_ / "states/recovering.pcow";
  state.write_to(path);
  PowerCuts cuts(run_, directory_, 6, true);
  cuts.worlds = worlds;
  cuts.checksums = checksums;
  cuts.whole_checksums = whole_checksums;
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
  bool base = false;         // the image stands on a base
  bool kills = false;        // the process is killed now and then
  int touch = 0;             // a place is made the image's own, and mapped: then it is stored to at any time
  int promote = 0;           // a chunk is completed from below
  bool interrupted = false;  // writes and discards come in the middle of syncs, snapshots and merges
  uint64_t blocks = 9;
  int shrink = 0, rebase = 0, commit = 0, compact = 0;
  int checksums = 0;  // frozen layers get checksums, or lose them
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
    {"mapping", 6, 14, 18, 8, 4, 2, 0, 2, 4, true, false, 34, 8, true},
    {"mapping, killed", 6, 8, 14, 8, 6, 4, 0, 2, 2, true, true, 40, 6},
    {"meanwhile", 40, 16, 24, 8, 6, 2, 0, 0, 4, false, false, 0, 0, true},
    {"shrinking", 48, 8, 10, 4, 8, 0, 0, 8, 4, false, false, 0, 0, false, 9, 10},
    {"rebases", 46, 8, 10, 8, 6, 4, 0, 0, 4, true, false, 0, 0, false, 9, 0, 14},
    {"commits", 56, 10, 10, 0, 0, 0, 0, 4, 6, true, false, 0, 0, false, 9, 0, 0, 14},
    {"compactions", 40, 6, 10, 8, 6, 4, 2, 0, 4, true, false, 0, 0, false, 9, 0, 0, 0, 20},
    {"checksums", 50, 4, 8, 14, 0, 2, 2, 0, 4, false, false, 0, 0, false, 9, 0, 0, 0, 0, 16},
    {"checksums and merges", 40, 6, 6, 12, 10, 2, 2, 0, 2, true, false, 0, 0, false, 9, 0, 4, 0, 4, 12},
    {"checksums, killed", 40, 6, 6, 12, 8, 2, 2, 0, 2, false, true, 0, 0, false, 9, 0, 0, 0, 8, 14},
    {"killed changes", 44, 8, 8, 6, 6, 2, 0, 2, 2, true, true, 0, 0, false, 9, 4, 8, 0, 10},
};
// Two chunks, for what may come in between when a merge is done with the first.
constexpr Profile kLongMerge = {"long merge", 40, 4, 4, 26, 26, 0, 0, 0, 0, false, false, 0, 0, true, 520};

// Not at random: see Workload::reuse_during_a_merge().
constexpr Profile kReuse = {"reuse during a merge", 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, 0, 0, false, 16};

class Workload {
 public:
  Workload(Run* run, const Profile& profile, uint32_t block_size)
      : run_(run),
        profile_(profile),
        block_size_(block_size),
        directory_(run->place),
        cuts_(run, &directory_, run->fault.err || profile.blocks > 100 ? 1 : 10, false) {}

  // A deletion with blocks that its heir lets go of and that would be used again at once, were they not held back: the file is full,
  // and they are the first that are free in it.
  void reuse_during_a_merge() {
    constexpr uint64_t kShared = 16;  // blocks: few, for then they lie where a full file has them taken from first
    constexpr uint64_t kReused = 40;
    const uint64_t sectors = block_size_ / kSector;
    const uint64_t second_chunk = kBlocksPerChunk * sectors;
    run_->where = "reuse during a merge";
    prepare();
    write(0, kShared * sectors);
    resize(second_chunk + 2 * kReused * sectors);
    write(second_chunk + kReused * sectors, sectors);  // so that the merge has two chunks
    snapshot();
    const Progress between = [&](uint64_t done, uint64_t) {
      if (done == 0 || cuts_.full) return true;
      discard_meanwhile(0, kShared * sectors);
      for (int i = 0; i < 2; i++) run_->must(image_->sync(), "sync meanwhile");
      cuts_.full = true;
      write_meanwhile(second_chunk, kReused * sectors);
      return true;
    };
    remove(between);
    for (int i = 0; i < 3; i++) sync();
    cuts_.full = false;
    finish();
  }

  void go(int steps) {
    prepare();
    for (int i = 0; i < steps; i++) {
      run_->where =
          std::string(profile_.name) + ", blocks of " + std::to_string(block_size_) + ", step " + std::to_string(i);
      if (profile_.kills && run_->random() % 3 == 0) cuts_.kill_after(run_->random() % 12);
      step();
    }
    finish();
  }

 private:
  void finish() {
    attempt("close", now_, {world_}, [&] { return image_->close(); });
    const auto closed = run_->must(open_image(image_path_, false, nullptr), "open what was closed");
    if (read_content(*run_, *closed) != now_) run_->fail("what was closed holds something else");
  }

  uint64_t below(uint64_t limit) { return run_->random() % limit; }

  void prepare() {
    const std::string path = directory_ / "image.pcow";
    CreateOptions options;
    options.size = std::max<uint64_t>(65536, profile_.blocks * block_size_ + 4096);
    options.block_size = block_size_;
    CHECK(mkdir((directory_ / "states").c_str(), 0700) == 0);
    if (profile_.base) {
      make_base("base", options);
      if (profile_.rebase) make_base("other", options);
      now_.active = bases_["base"];
      options.has_base = true;
      options.base.path = directory_ / "base.pcow";
      options.base.snapshot = "ground";
    }
    run_->must(create_image(path, options), "create");
    now_.active.resize(options.size / kSector);
    world_ = exactly(now_);
    cuts_.watch(path);
    if (profile_.commit) {
      cuts_.watch_base(options.base.path);
      cuts_.base_snapshots["ground"] = bases_["base"];
    }
    cuts_.worlds = {world_};
    cuts_.checksums = cuts_.whole_checksums = profile_.checksums > 0;
    image_path_ = path;
    attempt("open", now_, {world_}, [&] { return open_again(); });
  }

  Result<void> open_again() {
    auto opened = open_image(image_path_, true, &cuts_);
    if (!opened) return opened.error();
    image_ = std::move(*opened);
    return {};
  }

  // With a snapshot "ground". The states of the image find it too.
  void make_base(const std::string& name, const CreateOptions& options) {
    const std::string path = directory_ / (name + ".pcow");
    run_->must(create_image(path, options), "create");
    Content content;
    content.active.resize(options.size / kSector);
    auto image = run_->must(open_image(path, true, nullptr), "open");
    for (int i = 0; i < 10; i++) {
      const uint64_t first = below(content.active.size());
      const uint64_t count = std::min<uint64_t>(1 + below(40), content.active.size() - first);
      run_->must(write_sectors(image.get(), &content, first, count, run_), "write");
    }
    run_->must(image->snapshot("ground"), "snapshot");
    run_->must(image->close(), "close");
    if (!profile_.commit) CHECK(link(path.c_str(), (directory_ / ("states/" + name + ".pcow")).c_str()) == 0);
    bases_[name] = content.active;
  }

  // Does one thing, which takes the content from `now_` to `after`. While it is done the disk may hold any of `meanwhile`;
  // true: it was done, and the caller says what the disk may hold from now on.
  template <typename Do>
  bool attempt(const char* name, const Content& after, std::vector<World> meanwhile, const Do& what) {
    cuts_.begin(name);
    cuts_.worlds = std::move(meanwhile);
    later_.clear();
    auto outcome = what();
    if (cuts_.killed()) {
      revive(after);
      return false;
    }
    bool sync_failed = false;
    if (cuts_.recover(&sync_failed) && !outcome) {
      survive(after, outcome.error(), sync_failed);
      return false;
    }
    run_->must(std::move(outcome), name);
    now_ = after;
    for (const auto& [sector, stamps] : later_) now_.active[sector] = stamps.back();
    return true;
  }

  // The process was killed in the middle. Nothing is lost; what was being done may be seen or not.
  void revive(const Content& after) {
    run_->kills++;
    mapped_.clear();
    const std::string path = directory_ / ("image" + std::to_string(run_->kills) + ".pcow");
    cuts_.go_on_as(path);
    image_path_ = path;
    image_.reset();
    cuts_.begin("open after a kill");
    image_ = run_->must(open_image(path, true, &cuts_), "open after a kill");
    now_ = content_between(after);
    // Whichever of the worlds it is, it is on the disk now; but for what was written and not synced.
    World world = exactly(now_);
    for (const World& possible : cuts_.worlds) {
      if (possible.active.size() != world.active.size() || possible.snapshots != world.snapshots) continue;
      for (size_t i = 0; i < world.active.size(); i++)
        world.active[i].insert(possible.active[i].begin(), possible.active[i].end());
    }
    settle(std::move(world));
  }

  // What there is when something was not done to its end: nothing is lost, and it may be seen or not.
  Content content_between(const Content& after) {
    Content found = read_content(*run_, *image_);
    if (found.snapshots != now_.snapshots && found.snapshots != after.snapshots)
      run_->fail("what was not done to its end has changed snapshots");
    if (found.active.size() != now_.active.size() && found.active.size() != after.active.size())
      run_->fail("what was not done to its end has changed the size");
    for (size_t i = 0; i < found.active.size(); i++) {
      const bool as_before = i < now_.active.size() && found.active[i] == now_.active[i];
      if (!as_before && found.active[i] != after.active[i]) run_->fail("what was not done to its end has lost a write");
    }
    return found;
  }

  // The machine let an operation down. An error came out; the image is sound, and goes on. A failed sync is not forgotten
  // until the image is opened anew.
  void survive(const Content& after, const Error& error, bool sync_failed) {
    if (error.err != run_->fault.err) run_->fail("the fault became another error: " + error.message);
    mapped_.clear();
    const std::vector<World> meanwhile = cuts_.worlds;
    if (image_ && sync_failed) {
      const auto again = image_->sync();
      const bool closed = !again && again.error().code == Code::kClosed;
      if (again || (!closed && again.error().message.find("opened anew") == std::string::npos))
        run_->fail("a failed sync was forgotten");
      if (!closed && image_->close()) run_->fail("a failed sync was forgotten by closing");
    }
    if (image_ && !sync_failed && image_->sync()) {
      now_ = content_between(after);
      // What it was doing can be done again, and what was begun is finished by opening anew.
      run_->must(image_->close(), "close after an error");
    }
    image_.reset();
    run_->must(open_again(), "open after an error");
    now_ = content_between(after);
    run_->must(image_->sync(), "sync after an error");
    settle(exactly(now_));
  }

  // What came in while it was done may be on the disk or not.
  void settle(World world) {
    world_ = std::move(world);
    for (const auto& [sector, stamps] : later_) world_.active[sector].insert(stamps.begin(), stamps.end());
    later_.clear();
    cuts_.worlds = {world_};
  }

  // For the time of `what`, other threads write, discard and store through the mapping whenever they could.
  template <typename Do>
  auto interrupted(const Do& what) {
    if (profile_.interrupted && !run_->fault.err) {
      cuts_.interrupt = [&] {
        if (below(2)) meanwhile();
      };
    }
    auto outcome = what();
    cuts_.interrupt = nullptr;
    return outcome;
  }

  void meanwhile() {
    const uint64_t kind = below(4);
    if (kind == 0 && !mapped_.empty()) return store_meanwhile();
    if (kind == 1 && mapped_.empty()) return discard_meanwhile();
    write_meanwhile();
  }
  void discard_meanwhile() {
    uint64_t first, count;
    pick(&first, &count);
    discard_meanwhile(first, count);
  }
  void discard_meanwhile(uint64_t first, uint64_t count) {
    come_later(first, count, 0);
    run_->must(image_->discard(first * kSector, count * kSector), "discard meanwhile");
  }
  void write_meanwhile() {
    uint64_t first, count;
    pick(&first, &count);
    write_meanwhile(first, count);
  }
  void write_meanwhile(uint64_t first, uint64_t count) {
    Content content = now_;
    come_later(first, count, run_->stamps + 1);
    run_->must(write_sectors(image_.get(), &content, first, count, run_), "write meanwhile");
  }

  void come_later(uint64_t first, uint64_t count, uint64_t stamp) {
    for (uint64_t i = first; i < first + count; i++) {
      auto& stamps = later_[i];
      if (stamps.empty()) stamps.push_back(now_.active[i]);
      stamps.push_back(stamp);
      for (World& world : cuts_.worlds) world.active[i].insert(stamp);
    }
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
    if ((dice -= profile_.touch) < 0) return touch();
    if ((dice -= profile_.promote) < 0) return promote();
    if ((dice -= profile_.shrink) < 0) return shrink();
    if ((dice -= profile_.rebase) < 0) return rebase();
    if ((dice -= profile_.commit) < 0) return commit();
    if ((dice -= profile_.compact) < 0) return below(2) ? compact() : write_zeros();
    if ((dice -= profile_.checksums) < 0) return below(8) ? add_checksums() : remove_checksums();
    reopen();
  }

  void pick(uint64_t* first, uint64_t* count) {
    const uint64_t block = block_size_ / kSector;
    const uint64_t from = profile_.blocks > 100 ? (profile_.blocks - 20) * block : 0;
    *first = from + below(now_.active.size() - from);
    *count = below(3) ? 1 + below(10) : 1 + below(2 * block);
    if (below(3) == 0) {  // whole blocks
      *first = *first / block * block;
      *count = block * (1 + below(2));
    }
    *count = std::min(*count, now_.active.size() - *first);
  }

  // A guest under the monitor faults at a place.
  void touch() {
    FaultWork work;
    const uint64_t offset = below(now_.active.size()) * kSector;
    Extent extent;
    const auto fault = [&]() -> Result<void> {
      auto made = image_->make_writable(offset, {.ahead = below(4) * block_size_, .whole_block = below(2) == 0}, &work);
      if (!made) return made.error();
      extent = *made;
      if (below(4) == 0) return image_->allocate_ahead(extent.offset + extent.length, 4 * block_size_);
      return {};
    };
    if (!attempt("fault", now_, {world_}, fault)) return;
    mapped_.push_back(extent);
    for (uint64_t stores = 1 + below(3); stores; stores--) store();
  }

  // … and stores, which nobody sees.
  struct Stored {
    uint64_t first, count, stamp;
  };
  Stored store_sectors() {
    const Extent& extent = mapped_[below(mapped_.size())];
    const uint64_t sectors = std::min(extent.length, now_.active.size() * kSector - extent.offset) / kSector;
    const uint64_t within = below(sectors);
    const uint64_t count = std::min<uint64_t>(1 + below(12), sectors - within);
    const uint64_t stamp = ++run_->stamps;
    std::vector<uint8_t> bytes(count * kSector);
    const uint64_t first = extent.offset / kSector + within;
    for (uint64_t i = 0; i < count; i++) fill_sector(stamp, first + i, bytes.data() + i * kSector);
    const uint64_t place = extent.place + within * kSector;
    for (uint64_t i = 0; i < count; i++)
      for (World& world : cuts_.worlds) world.active[first + i].insert(stamp);
    CHECK(pwrite(image_->descriptor(), bytes.data(), bytes.size(), static_cast<off_t>(place)) ==
          static_cast<ssize_t>(bytes.size()));
    cuts_.store_through_mapping(place, bytes.size(), bytes.data());
    return {first, count, stamp};
  }
  void store() {
    const auto [first, count, stamp] = store_sectors();
    for (uint64_t i = first; i < first + count; i++) {
      now_.active[i] = stamp;
      world_.active[i].insert(stamp);
    }
  }
  void store_meanwhile() {
    const auto [first, count, stamp] = store_sectors();
    come_later(first, count, stamp);
  }

  void promote() {
    FaultWork work;
    const uint64_t offset = below(now_.active.size()) * kSector;
    attempt("promotion", now_, {world_}, [&] { return image_->complete_chunk(offset, &work); });
  }

  void write() {
    uint64_t first, count;
    pick(&first, &count);
    write(first, count);
  }
  void write(uint64_t first, uint64_t count) {
    Content after = now_;
    World world = world_;
    for (uint64_t i = first; i < first + count; i++) world.active[i].insert(run_->stamps + 1);
    if (attempt("write", after, {world}, [&] { return write_sectors(image_.get(), &after, first, count, run_); })) {
      now_ = after;
      settle(std::move(world));
    }
  }

  void discard() {
    mapped_.clear();  // the monitor takes the range out of the mapping before
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
    const Content before = now_;
    if (attempt("sync", now_, {world_}, [&] { return interrupted([&] { return image_->sync(); }); }))
      settle(exactly(before));
  }

  void snapshot() {
    const std::string name = "s" + std::to_string(names_++);
    if (profile_.interrupted) return snapshot_in_steps(name);
    mapped_.clear();
    Content after = now_;
    after.snapshots[name] = now_.active;
    if (attempt("snapshot", after, {world_, exactly(after)}, [&] { return image_->snapshot(name); }))
      settle(exactly(after));
  }

  // As the monitor takes one: writes and stores come in until the cut, and again after it.
  void snapshot_in_steps(const std::string& name) {
    std::unique_ptr<PendingSnapshot> pending;
    const auto prepare = [&]() -> Result<void> {
      auto prepared = interrupted([&] { return PendingSnapshot::prepare(image_.get(), name, false); });
      if (!prepared) return prepared.error();
      pending = std::move(*prepared);
      return {};
    };
    if (!attempt("prepare", now_, {world_}, prepare)) return;
    settle(world_);
    mapped_.clear();
    Content after = now_;
    after.snapshots[name] = now_.active;
    const auto finish = [&]() -> Result<void> {
      pending->close_gate();
      auto outcome = pending->commit();
      if (outcome) outcome = interrupted([&] { return pending->finish(); });
      pending.reset();
      return outcome;
    };
    if (attempt("commit", after, {world_, exactly(after)}, finish)) settle(exactly(after));
  }

  void remove() {
    // Enough for blocks to be let go, and to be used again where that is allowed.
    const Progress between = [&](uint64_t, uint64_t) {
      if (!profile_.interrupted || run_->fault.err || below(3) == 0) return true;
      for (uint64_t times = mapped_.empty() ? below(5) : 0; times; times--) discard_meanwhile();
      for (uint64_t times = below(3); times; times--) run_->must(image_->sync(), "sync meanwhile");
      for (uint64_t times = below(5); times; times--) write_meanwhile();
      return true;
    };
    remove(between);
  }
  void remove(const Progress& between) {
    cuts_.whole_checksums = false;  // what an heir takes has none
    Content after = now_;
    const std::string name = some_snapshot();
    after.snapshots.erase(name);
    World world = world_;
    world.snapshots.erase(name);
    if (attempt("remove", after, {world_, world}, [&] { return image_->remove(name, between); }))
      settle(std::move(world));
  }

  void rollback() {
    mapped_.clear();
    Content after = now_;
    const std::string name = some_snapshot();
    after.active = now_.snapshots[name];
    if (attempt("rollback", after, {world_, exactly(after)}, [&] { return image_->rollback(name); }))
      settle(exactly(after));
  }

  void clone() {
    if (now_.snapshots.size() >= 6) return remove();
    mapped_.clear();
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
    resize(now_.active.size() + 8 * (1 + below(40)));
  }
  void resize(uint64_t sectors) {
    mapped_.clear();
    Content after = now_;
    after.active.resize(sectors);
    World world = world_;
    world.active.resize(after.active.size(), {0});
    if (attempt("resize", after, {world_, world}, [&] { return image_->resize(after.active.size() * kSector); }))
      settle(std::move(world));
  }

  void shrink() {
    Content after = now_;
    after.active.resize(now_.active.size() - std::min(now_.active.size() - 128, 8 * (1 + below(30))));
    World world = world_;
    world.active.resize(after.active.size());
    bool refused = false;  // it is never smaller than what it stands on
    const auto resize = [&] {
      auto outcome = image_->resize(after.active.size() * kSector, true);
      refused = !outcome && outcome.error().code == Code::kInvalid;
      return refused ? Result<void>() : outcome;
    };
    const Content before = now_;
    if (!attempt("shrink", after, {world_, world}, resize)) return;
    if (refused) now_ = before;
    settle(refused ? world_ : std::move(world));
  }

  // To one of the bases, or to none. Nobody sees a change.
  void rebase() {
    cuts_.whole_checksums = false;
    BaseSpec base;
    base.snapshot = "ground";
    const uint64_t which = below(3);
    base.path = directory_ / (which == 1 ? "other.pcow" : "base.pcow");
    if (attempt("rebase", now_, {world_}, [&] { return image_->rebase(base, which != 0, nullptr); }))
      settle(exactly(now_));
  }

  void commit() {
    const std::string name = "c" + std::to_string(names_++);
    cuts_.base_coming = {{name, now_.active}};
    const auto into_base = [&]() -> Result<void> {
      auto base = open_image(directory_ / "base.pcow", true, &cuts_);
      if (!base) return base.error();
      auto along = image_->commit_into(base->get(), name, false, nullptr);
      if (!along) return along.error();
      return (*base)->close();
    };
    if (!attempt("commit", now_, {world_}, into_base)) return;
    cuts_.base_snapshots[name] = now_.active;
    cuts_.base_coming.clear();
    settle(exactly(now_));
  }

  void write_zeros() {
    uint64_t first, count;
    pick(&first, &count);
    const uint64_t page = kPageSize / kSector;
    first = first / page * page;
    count = std::min(round_up(count, page), now_.active.size() - first);
    Content after = now_;
    World world = world_;
    for (uint64_t i = first; i < first + count; i++) {
      after.active[i] = 0;
      world.active[i].insert(0);
    }
    const std::vector<char> zeros(count * kSector);
    if (attempt("write zeros", after, {world},
                [&] { return image_->write(first * kSector, zeros.data(), zeros.size()); }))
      settle(std::move(world));
  }

  void compact() {
    if (attempt("compact", now_, {world_}, [&] { return image_->compact(nullptr); })) settle(exactly(now_));
  }

  void add_checksums() {
    if (attempt("add checksums", now_, {world_}, [&] { return image_->add_checksums(nullptr); })) settle(exactly(now_));
  }

  void remove_checksums() {
    attempt("remove checksums", now_, {world_}, [&] { return image_->remove_checksums(); });
  }

  void reopen() {
    mapped_.clear();
    if (!attempt("close", now_, {world_}, [&] { return image_->close(); })) return;
    settle(exactly(now_));
    image_.reset();
    attempt("open", now_, {world_}, [&] { return open_again(); });
  }

  Run* run_;
  const Profile& profile_;
  const uint32_t block_size_;
  TemporaryDirectory directory_;
  PowerCuts cuts_;
  std::string image_path_;
  std::unique_ptr<Image> image_;
  Content now_;                                      // as every process sees it
  World world_;                                      // what a power cut may leave of it
  std::vector<Extent> mapped_;                       // what a guest may store to
  std::map<uint64_t, std::vector<uint64_t>> later_;  // sectors that were written during an operation, by it not covered
  int names_ = 0;
  std::map<std::string, Stamps> bases_;  // what their snapshots "ground" hold
};

}  // namespace

void run_workloads(Run* run, int steps) {
  for (const Profile& profile : kProfiles)
    for (const uint32_t block_size : kBlockSizes) Workload(run, profile, block_size).go(steps);
  Workload(run, kLongMerge, 4096).go(steps);
  Workload(run, kReuse, 4096).reuse_during_a_merge();
}

void run_workload(Run* run, const std::string& name, int steps) {
  if (name == kLongMerge.name) return Workload(run, kLongMerge, 4096).go(steps);
  if (name == kReuse.name) return Workload(run, kReuse, 4096).reuse_during_a_merge();
  const auto profile =
      std::find_if(std::begin(kProfiles), std::end(kProfiles), [&](const Profile& one) { return name == one.name; });
  CHECK(profile != std::end(kProfiles));
  for (const uint32_t block_size : kBlockSizes) Workload(run, *profile, block_size).go(steps);
}

void run_with_fault(Run* run, const std::string& name, uint32_t block_size, int steps) {
  for (const Profile& profile : kProfiles)
    if (name == profile.name) Workload(run, profile, block_size).go(steps);
}

std::vector<std::string> fault_workloads() {
  std::vector<std::string> names;
  for (const Profile& profile : kProfiles)
    if (!profile.kills && !profile.commit) names.emplace_back(profile.name);  // a commit is judged by its base
  return names;
}
