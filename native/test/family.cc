#include "family.h"

#include <sys/stat.h>

#include <filesystem>

using namespace pcow;

namespace crash {

int Process::fault_of(FileOperation operation) {
  const bool needs_space = operation == FileOperation::kWrite ||
                           operation == FileOperation::kAllocate ||
                           operation == FileOperation::kResize;
  const bool is_sync = operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
  const bool eligible =
      err_ == ENOSPC ? needs_space : err_ == EIO && !is_sync && operation != FileOperation::kStore;
  if (!eligible || until_failure_-- > 0) return 0;
  failed_ = true;
  return std::exchange(err_, 0);
}

int Process::before(FileOperation operation, const std::string& path, uint64_t offset,
                    uint64_t length, const void* data) {
  const bool changes = operation != FileOperation::kRead && operation != FileOperation::kMap;
  if (killed_) return EIO;
  // The number of parts depends on time, not on the seed.
  if (operation == FileOperation::kWriteBack) return 0;
  if (changes && left_ != kNever && left_-- == 0) {
    killed_ = true;
    return EIO;
  }
  if (const int err = fault_of(operation)) return err;
  const uint64_t seldom = family_->base_goes_on_ ? 3 : operation == FileOperation::kSync ? 6 : 40;
  if (family_->below(seldom) == 0) family_->others_go_on(member_);
  if (!changes) return 0;
  const std::string name = path.substr(family_->directory_.path().size() + 1);
  DiskSimulator& disk = family_->disk_.file(name);
  if (operation == FileOperation::kSync) {
    family_->cut(family_->depth_ ? 1 : 2);
    disk.sync(offset, length);
    return 0;
  }
  if (operation == FileOperation::kStore && !disk.has_space(offset, length))
    family_->run_->fail("a store into a table may find the disk full");
  disk.apply(operation, offset, length, data);
  if (family_->below(60) == 0) family_->cut(1);
  return 0;
}

Family::Family(Run* run, uint32_t block_size, uint64_t blocks)
    : run_(run),
      block_size_(block_size),
      blocks_(blocks),
      directory_(run->place),
      disk_(directory_.path()) {
  for (const char* path : {"elsewhere", "states", "states/elsewhere"})
    CHECK(mkdir(place(path).c_str(), 0700) == 0);
  auto base = std::make_unique<Member>();
  base->path = "base.pcow";
  CreateOptions options;
  options.size = std::max<uint64_t>(65536, blocks * block_size_ + 4096);
  options.block_size = block_size_;
  run_->must(create_image(place(base->path), options), "create");
  disk_.adopt(base->path);
  base->now.active.resize(options.size / kSector);
  base->world = exactly(base->now);
  base->worlds = {base->world};
  members_.push_back(std::move(base));
  open(members_.front().get());
  name_observer = this;
}

Family::~Family() { name_observer = nullptr; }

void Family::saw(NameEvent event, const std::string& path, const std::string& second) {
  const std::string root = directory_.path() + "/";
  const auto within = [&](const std::string& name) {
    return name.starts_with(root) ? name.substr(root.size()) : "";
  };
  const bool is_root = path == directory_.path();
  const std::string name = within(path);
  if (checking_ || (name.empty() && !is_root) || name.starts_with("states")) return;
  if (naming_ && event == NameEvent::kSync) cut(2);
  disk_.apply(event, name, within(second));
  if (!naming_) return;
  if (below(3) == 0) others_go_on(naming_);
  cut(1);
}

void Family::go(int steps) {
  for (int i = 0; i < steps; i++) {
    run_->where =
        "family, blocks of " + std::to_string(block_size_) + ", step " + std::to_string(i);
    if (below(10) == 0) {
      change_files();
    } else {
      Member* member = some_member([](const Member& one) { return !one.orphaned; });
      step(member);
      compare(member);
    }
    read_on();
    read_orphans();
  }
  depth_++;  // no other process acts meanwhile
  for (const auto& member : members_) {
    if (member->orphaned) continue;
    close(member.get());
    must_be_sound(*run_, place(member->path));
    if (read_content(*run_, *run_->must(open_image(place(member->path), false, nullptr), "open")) !=
        member->now)
      run_->fail(member->path + ": what was closed holds something else");
  }
  cut(8);
}

Member* Family::some_member(const std::function<bool(const Member&)>& fits) {
  std::vector<Member*> found;
  for (const auto& member : members_)
    if (fits(*member)) found.push_back(member.get());
  return found.empty() ? nullptr : found[below(found.size())];
}

bool Family::is_stood_on(const Member& member, const std::string& snapshot) const {
  return std::any_of(members_.begin(), members_.end(), [&](const auto& other) {
    const bool stands = (other->base == &member && other->base_snapshot == snapshot) ||
                        (other->next_base == &member && other->next_snapshot == snapshot);
    return stands && !other->orphaned;
  });
}

bool Family::is_stood_on(const Member& member) const {
  return std::any_of(members_.begin(), members_.end(), [&](const auto& other) {
    return !other->orphaned && (other->base == &member || other->next_base == &member);
  });
}

std::string Family::some_snapshot(const Member& member) {
  auto at = member.now.snapshots.begin();
  std::advance(at, static_cast<ptrdiff_t>(below(member.now.snapshots.size())));
  return at->first;
}

void Family::open(Member* member) {
  const bool was_busy = std::exchange(member->busy, true);
  member->image.reset();
  member->process = std::make_unique<Process>(this, member);
  member->image = run_->must(open_image(place(member->path), true, member->process.get()), "open");
  member->busy = was_busy;
}

void Family::close(Member* member) {
  const std::string outer = std::exchange(run_->operation, member->path + ": close");
  run_->must(member->image->close(), "close");
  member->image.reset();
  settle(member, exactly(member->now));
  run_->operation = outer;
}

// The process was killed in the middle. Nothing may be lost; the interrupted operation may be
// visible or not.
void Family::revive(Member* member, const Content& after) {
  run_->kills++;
  member->image.reset();
  disk_.restore(member->path);
  open(member);
  member->now = content_between(member, after);
  // Whichever of the worlds was left, it is on the disk now, except what was written and not
  // synced.
  World world = exactly(member->now);
  for (const World& possible : member->worlds) {
    if (possible.snapshots != world.snapshots) continue;
    for (size_t i = 0; i < world.active.size(); i++)
      world.active[i].insert(possible.active[i].begin(), possible.active[i].end());
  }
  settle(member, std::move(world));
}

// Something was interrupted. The operation waits, or opening the image again finishes it.
void Family::survive(Member* member, const Content& after) {
  const auto is_about = [&](const char* what) {
    return run_->operation.find(what) != std::string::npos;
  };
  if (below(3) == 0 || is_about("snapshot") || is_about("close")) {
    run_->must(member->image->close(), "close after an error");
    open(member);
  }
  member->now = content_between(member, after);
  run_->must(member->image->sync(), "sync after an error");
  settle(member, exactly(member->now));
}

// The state after an operation that was not finished: nothing is lost, and the operation may be
// visible or not.
Content Family::content_between(Member* member, const Content& after) {
  Content found = read_content(*run_, *member->image);
  const Content& before = member->now;
  if (found.snapshots != before.snapshots && found.snapshots != after.snapshots)
    run_->fail(member->path + ": what was not done to its end has changed snapshots");
  for (size_t i = 0; i < found.active.size(); i++) {
    const auto later = member->later.find(i);
    const bool is_later =
        later != member->later.end() && std::ranges::count(later->second, found.active[i]);
    if (!is_later && found.active[i] != before.active[i] && found.active[i] != after.active[i])
      run_->fail(member->path + ": what was not done to its end has lost a write");
  }
  return found;
}

// What was written during the operation may be on the disk or not.
void Family::settle(Member* member, World world) {
  member->world = std::move(world);
  for (const auto& [sector, stamps] : member->later)
    member->world.active[sector].insert(stamps.begin(), stamps.end());
  member->later.clear();
  member->worlds = {member->world};
}

void Family::others_go_on(const Member* but) {
  if (depth_ || checking_) return;
  depth_++;
  const auto free = [&](const Member& one) { return &one != but && !one.busy && !one.orphaned; };
  if (base_goes_on_ && but->base && free(*but->base)) {
    remove(but->base);
    compare(but->base);
  } else if (Member* other = some_member(free); other && below(3)) {
    step(other);
    compare(other);
  }
  read_on();
  read_orphans();
  depth_--;
}

void Family::cut(size_t budget) {
  if (checking_) return;
  checking_ = true;
  disk_.sample(budget, &run_->random, [&](const FamilyDisk::State& state) { check(state); });
  checking_ = false;
}

void Family::check(const FamilyDisk::State& state) {
  run_->states++;
  for (const char* directory : {"states", "states/elsewhere"})
    for (const auto& left : std::filesystem::directory_iterator(place(directory)))
      if (!left.is_directory()) std::filesystem::remove(left.path());
  std::map<const DiskState*, std::string> names;
  for (const auto& [path, disk] : state) {
    const std::string name = place("states/" + path);
    const auto [known, is_new] = names.try_emplace(disk.get(), name);
    if (is_new) {
      disk->forget_boot();
      disk->write_to(name);
    } else {
      std::filesystem::create_hard_link(known->second, name);
    }
  }
  check_names(state);
  // In any order: the first process that opens an image for writing recovers it, and other images
  // stand on what it recovers.
  std::vector<const Member*> order;
  for (const auto& member : members_) order.push_back(member.get());
  std::shuffle(order.begin(), order.end(), run_->random);
  for (const Member* member : order) {
    const std::string& name = state.contains(member->path) ? member->path : member->second;
    if (!state.contains(name)) continue;
    if (member->orphaned) {
      check_orphan(*member, place("states/" + name));
    } else {
      check_member(*member, place("states/" + name));
    }
  }
}

void Family::check_names(const FamilyDisk::State& state) {
  for (const auto& member : members_)
    if (!member->is_passing && !state.contains(member->path) && !state.contains(member->second))
      run_->fail(member->path + " is not there");
  for (const auto& [path, disk] : state)
    if (std::none_of(members_.begin(), members_.end(), [&path = path](const auto& member) {
          return path == member->path || path == member->second;
        }))
      run_->fail(path + " is there again");
}

void Family::check_member(const Member& member, const std::string& path) {
  must_be_sound(*run_, path);
  Content content =
      read_content(*run_, *run_->must(open_image(path, false, nullptr), "open for reading"));
  if (std::none_of(member.worlds.begin(), member.worlds.end(),
                   [&](const World& world) { return allows(world, content); })) {
    std::string why;
    for (const World& world : member.worlds)
      why +=
          (why.empty() ? "" : "; or, if what was under way is over: ") + difference(world, content);
    run_->fail(member.path + ": " + why);
  }
  if (below(6) == 0) work_on(member, path, std::move(content));
}

// What was recovered for reading is recovered for writing as well, and the image is usable.
void Family::work_on(const Member& member, const std::string& path, Content content) {
  auto image = run_->must(open_image(path, true, nullptr), "open for writing");
  if (read_content(*run_, *image) != content)
    run_->fail(member.path + ": opened for writing it holds something else");
  for (int i = 0; i < 3; i++) {
    uint64_t first, count;
    pick(member, &first, &count);
    run_->must(write_sectors(image.get(), &content, first, count, run_), "write");
  }
  for (const auto& [name, stamps] : member.now.snapshots) {
    if (below(6) || !content.snapshots.contains(name) || is_stood_on(member, name)) continue;
    run_->must(image->remove(name, nullptr), "remove");
    content.snapshots.erase(name);
  }
  run_->must(image->close(), "close");
  must_be_sound(*run_, path);
  image = run_->must(open_image(path, false, nullptr), "open again");
  if (read_content(*run_, *image) != content)
    run_->fail(member.path + ": after closing it holds something else");
}

// An image whose base was deleted may get an error, but it never reads other bytes.
void Family::check_orphan(const Member& member, const std::string& path) {
  const auto image = open_image(path, false, nullptr);
  if (!image) return;
  std::vector<uint8_t> bytes(member.now.active.size() * kSector);
  if (!(*image)->read(nullptr, 0, bytes.data(), bytes.size())) return;
  if (read_stamps(*run_, **image, nullptr, member.path) != member.now.active)
    run_->fail(member.path + ": its base was deleted, and it reads something else");
}

void run_families(Run* run, int steps) {
  Turns turns(&run->random, 4);
  for (const uint32_t block_size : {4096, 16384, 65536})
    if (turns.next()) Family(run, block_size, 9).go(steps);
  if (turns.next()) Family(run, 4096, 520).go(steps / 2);
}

}  // namespace crash
