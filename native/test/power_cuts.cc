#include "power_cuts.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

using namespace pcow;

namespace crash {

namespace {

// Makes every file count as one in persistent memory.
class AsIfPersistent : public FileObserver {
 public:
  int before(FileOperation, const std::string&, uint64_t, uint64_t, const void*) override {
    return 0;
  }
  bool is_persistent(const std::string&) override { return true; }
};

}  // namespace

int PowerCuts::before(FileOperation operation, const std::string& path, uint64_t offset,
                      uint64_t length, const void* data) {
  if (base_disk_ && path == base_path_) {
    if (operation != FileOperation::kRead && operation != FileOperation::kMap)
      before_in_base(operation, offset, length, data);
    return 0;
  }
  if (path != path_) return 0;
  if (full && operation == FileOperation::kResize) return ENOSPC;
  if (refused_writes && operation == FileOperation::kWrite) {
    refused_writes--;
    return ENOSPC;
  }
  if (const int err = fault_of(operation)) {
    if (operation == FileOperation::kWrite) do_in_part(offset, length, data);
    return err;
  }
  if (operation == FileOperation::kRead || operation == FileOperation::kMap) return 0;
  if (left_ != kNever && left_-- == 0) killed_ = true;
  if (killed_) {
    left_ = 0;
    return EIO;
  }
  must_be_closing(operation, offset);
  if (operation == FileOperation::kSync) {
    cut(budget_);
    disk_->sync(offset, length);
    // Not within `meanwhile` itself.
    if (auto meanwhile = std::exchange(interrupt, nullptr)) {
      meanwhile();
      interrupt = std::move(meanwhile);
    }
    return 0;
  }
  if (operation == FileOperation::kFence && run_->random() % 4 == 0) cut(2);
  if (operation == FileOperation::kStore && !disk_->has_space(offset, length))
    run_->fail("a store into a table may find the disk full");
  disk_->apply(operation, offset, length, data);
  if (run_->random() % 16 == 0) cut(2);
  return 0;
}

// The file becomes shorter only at the end of closing: after that come a superblock and a sync.
void PowerCuts::must_be_closing(FileOperation operation, uint64_t offset) {
  const bool changes = operation == FileOperation::kWrite || operation == FileOperation::kStore ||
                       operation == FileOperation::kAllocate ||
                       operation == FileOperation::kPunch || operation == FileOperation::kResize;
  if (shortened_ && changes && offset >= 2 * kPageSize)
    run_->fail("the file was used after it had become shorter");
  if (operation == FileOperation::kShorten)
    shortened_ = true;
  else if (operation == FileOperation::kSync)
    shortened_ = false;
}

void PowerCuts::before_in_base(FileOperation operation, uint64_t offset, uint64_t length,
                               const void* data) {
  if (operation == FileOperation::kSync) {
    cut(budget_);
    base_disk_->sync(offset, length);
  } else {
    if (operation == FileOperation::kFence && run_->random() % 4 == 0) cut(2);
    base_disk_->apply(operation, offset, length, data);
    if (run_->random() % 16 == 0) cut(2);
  }
}

// A write that fails may have been done, in part or as a whole. (A superblock may be torn anywhere;
// data, only between sectors.)
void PowerCuts::do_in_part(uint64_t offset, uint64_t length, const void* data) {
  uint64_t done = run_->random() % 2 ? run_->random() % (length + 1) : length;
  if (offset > kPageSize) done -= done % kSector;
  if (done == 0) return;
  const int descriptor = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  CHECK(descriptor >= 0 &&
        pwrite(descriptor, data, done, static_cast<off_t>(offset)) == static_cast<ssize_t>(done));
  ::close(descriptor);
  disk_->apply(FileOperation::kWrite, offset, done, data);
}

int PowerCuts::fault_of(FileOperation operation) {
  Fault& fault = run_->fault;
  const bool needs_space = operation == FileOperation::kWrite ||
                           operation == FileOperation::kAllocate ||
                           operation == FileOperation::kResize;
  const bool eligible =
      fault.err != 0 && operation < FileOperation::kStore && (!fault.of_space || needs_space);
  if (nested_ || !eligible) return 0;
  const bool goes_on = faulty_ && fault.lasts;
  if (!goes_on && (fault.struck || fault.operation-- > 0)) return 0;
  fault.struck = faulty_ = true;
  sync_failed_ |= operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
  return fault.err;
}

void PowerCuts::check(DiskState state) {
  run_->states++;
  state.forget_boot();
  const std::string path =
      *directory_ / (nested_ ? "states/nested-state.pcow" : "states/state.pcow");
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
      why +=
          (why.empty() ? "" : "; or, if what was under way is over: ") + difference(world, content);
    run_->fail(why);
  }
  if (also) also(path);
  if (!nested_ && run_->random() % 24 == 0) cut_recovery(state);
  if (!draft) go_on(path, std::move(content));
}

// Makes the base of the state to be checked: its disk may be in any state, independently of the
// image's.
void PowerCuts::check_base() {
  std::vector<DiskState> states;
  base_disk_->sample(4, &run_->random,
                     [&](DiskState state) { states.push_back(std::move(state)); });
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

// What was recovered for reading is recovered for writing as well, and the image is usable.
void PowerCuts::go_on(const std::string& path, Content content) {
  AsIfPersistent memory;
  const bool in_memory = run_->persistent && run_->random() % 2;
  auto image =
      run_->must(open_image(path, true, in_memory ? &memory : nullptr), "open for writing");
  if (read_content(*run_, *image) != content)
    run_->fail("opened for writing it holds something else");
  for (int i = 0; i < 5; i++) {
    const uint64_t first = run_->random() % content.active.size();
    const uint64_t count =
        std::min<uint64_t>(1 + run_->random() % 12, content.active.size() - first);
    if (run_->random() % 4 == 0) {
      // A page that is only newly mapped has not been written, and must read as before.
      FaultWork work;
      run_->must(with_fetches(*run_, image.get(),
                              [&] {
                                return image->make_writable(first * kSector,
                                                            {.ahead = count * kSector}, &work);
                              }),
                 "fault");
    } else if (run_->random() % 4 == 0) {
      run_->must(with_fetches(*run_, image.get(),
                              [&] { return image->discard(first * kSector, count * kSector); }),
                 "discard");
      std::fill_n(content.active.begin() + static_cast<ptrdiff_t>(first), count, 0);
    } else {
      run_->must(write_sectors(image.get(), &content, first, count, run_), "write");
    }
  }
  if (run_->random() % 8 == 0) {
    run_->must(fetch_all(*run_, image.get()), "fetch everything");
    while (!content.snapshots.empty()) {
      run_->must(image->remove(content.snapshots.begin()->first, nullptr), "remove");
      content.snapshots.erase(content.snapshots.begin());
    }
  }
  if (checksums && run_->random() % 4 == 0)
    run_->must(image->add_checksums(nullptr), "add checksums");
  if (read_content(*run_, *image) != content)
    run_->fail("after further work it holds something else");
  run_->must(image->close(), "close");
  must_be_sound(*run_, path);
  image = run_->must(open_image(path, false, nullptr), "open again");
  if (read_content(*run_, *image) != content) run_->fail("after closing it holds something else");
}

// Cuts the power again, during the recovery of the image and after it.
void PowerCuts::cut_recovery(const DiskState& state) {
  const std::string path = *directory_ / "states/recovering.pcow";
  state.write_to(path);
  PowerCuts cuts(run_, directory_, 6, true);
  cuts.worlds = worlds;
  cuts.checksums = checksums;
  cuts.whole_checksums = whole_checksums;
  cuts.draft = draft;
  cuts.watch(path);
  cuts.begin("recovery");
  auto image = run_->must(open_image(path, true, &cuts), "open for writing, with power cuts");
  run_->must(image->sync(), "sync");
  cuts.worlds = {exactly(read_content(*run_, *image))};
  run_->must(image->close(), "close");
}

}  // namespace crash
