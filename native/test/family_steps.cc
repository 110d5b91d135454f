// The operations of a family's processes.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "engine/format/geometry.h"
#include "family.h"

using namespace pcow;

namespace crash {

void Family::step(Member* member) {
  const uint64_t dice = below(100);
  if (dice < 26) {
    for (uint64_t times = 1 + below(6); times; times--) write(member);
    return;
  }
  if (dice < 31) return discard(member);
  if (dice < 37) return touch(member);
  if (dice < 42) return sync(member);
  if (dice < 60) return member->now.snapshots.size() < 5 ? snapshot(member) : remove(member);
  if (dice < 64) return rename_snapshot(member);
  if (dice < 84) return remove(member);
  if (dice < 86) return rollback(member);
  if (dice < 91) return clone(member);
  if (dice < 94) return rebase(member);
  if (dice < 96) return commit(member);
  if (dice < 98) return compact(member);
  reopen(member);
}

void Family::pick(const Member& member, uint64_t* first, uint64_t* count) {
  const uint64_t block = block_size_ / kSector;
  // If there are two chunks, near their border.
  const uint64_t from = blocks_ > kBlocksPerChunk ? (kBlocksPerChunk - 5) * block : 0;
  *first = from + below(member.now.active.size() - from);
  *count = below(4) ? 1 + below(10) : 1 + below(2 * block);
  if (below(6) == 0) {
    *first = *first / block * block;
    *count = block * (1 + below(2));
  }
  *count = std::min(*count, member.now.active.size() - *first);
}

void Family::write(Member* member) {
  uint64_t first, count;
  pick(*member, &first, &count);
  Content after = member->now;
  World world = member->world;
  for (uint64_t i = first; i < first + count; i++) world.active[i].insert(run_->stamps + 1);
  // Take the stamp now, because other processes write in the middle.
  std::vector<uint8_t> bytes(count * kSector);
  const uint64_t stamp = ++run_->stamps;
  for (uint64_t i = 0; i < count; i++) {
    fill_sector(stamp, first + i, bytes.data() + i * kSector);
    after.active[first + i] = stamp;
  }
  member->changing = true;
  if (attempt(member, "write", after, {world},
              [&] { return member->image->write(first * kSector, bytes.data(), bytes.size()); }))
    settle(member, std::move(world));
}

// A thread of the process that is in the middle of an operation.
void Family::write_meanwhile(Member* member) {
  uint64_t first, count;
  pick(*member, &first, &count);
  const bool discards = below(4) == 0;
  const uint64_t stamp = discards ? 0 : ++run_->stamps;
  std::vector<uint8_t> bytes(count * kSector);
  for (uint64_t i = first; i < first + count; i++) {
    if (!discards) fill_sector(stamp, i, bytes.data() + (i - first) * kSector);
    auto& stamps = member->later[i];
    if (stamps.empty()) stamps.push_back(member->now.active[i]);
    stamps.push_back(stamp);
    for (World& world : member->worlds) world.active[i].insert(stamp);
  }
  auto done = discards ? member->image->discard(first * kSector, bytes.size())
                       : member->image->write(first * kSector, bytes.data(), bytes.size());
  if (!member->process->killed()) run_->must(std::move(done), "write meanwhile");
}

void Family::discard(Member* member) {
  uint64_t first, count;
  pick(*member, &first, &count);
  Content after = member->now;
  World world = member->world;
  for (uint64_t i = first; i < first + count; i++) {
    after.active[i] = 0;
    world.active[i].insert(0);
  }
  member->changing = true;
  if (attempt(member, "discard", after, {world},
              [&] { return member->image->discard(first * kSector, count * kSector); }))
    settle(member, std::move(world));
}

// A page fault of a guest, after which the image reads as before.
void Family::touch(Member* member) {
  const uint64_t offset = below(member->now.active.size()) * kSector;
  const FaultHint hint{.ahead = below(4) * block_size_, .whole_block = below(2) == 0};
  const auto fault = [&]() -> Result<void> {
    FaultWork work;
    auto made = member->image->make_writable(offset, hint, &work);
    if (!made) return made.error();
    return below(4) ? Result<void>()
                    : member->image->allocate_ahead(made->offset + made->length,
                                                    4 * uint64_t{block_size_});
  };
  // A merge in the base may overtake it at any moment.
  base_goes_on_ = depth_ == 0 && below(2);
  if (attempt(member, "fault", member->now, {member->world}, fault)) settle(member, member->world);
  base_goes_on_ = false;
}

void Family::sync(Member* member) {
  const Content before = member->now;
  if (attempt(member, "sync", before, {member->world}, [&] { return member->image->sync(); }))
    settle(member, exactly(before));
}

void Family::snapshot(Member* member) {
  const std::string name = "s" + std::to_string(names_++);
  Content after = member->now;
  after.snapshots[name] = after.active;
  if (attempt(member, "snapshot", after, {member->world, exactly(after)},
              [&] { return member->image->snapshot(name); }))
    settle(member, exactly(after));
}

// Images that stand on the snapshot, and its readers, continue with it under its new name.
void Family::rename_snapshot(Member* member) {
  if (member->now.snapshots.empty()) return snapshot(member);
  const std::string from = some_snapshot(*member);
  const std::string to = "r" + std::to_string(names_++);
  Content after = member->now;
  after.snapshots[to] = after.snapshots.extract(from).mapped();
  World world = member->world;
  world.snapshots[to] = world.snapshots.extract(from).mapped();
  member->removing =
      // From now on no image is made to stand on it, and no reader begins, by a name that may be
      // gone.
      from;
  if (attempt(member, "rename " + from, after, {member->world, world},
              [&] { return member->image->rename_snapshot(from, to); }))
    settle(member, exactly(after));
  member->removing.clear();
  if (!member->now.snapshots.contains(to)) return;
  if (member->reader.snapshot == from) member->reader.snapshot = to;
  for (const auto& other : members_)
    if (other->base == member && other->base_snapshot == from) other->base_snapshot = to;
}

// Between two chunks of a long operation: the image is used, and readers continue; or the operation
// is stopped there.
Progress Family::between(Member* member) {
  const bool cancels = below(4) == 0;
  return [=, this](uint64_t done, uint64_t total) {
    if (member->process->killed()) return true;
    member->process->without_failures([&] {
      for (uint64_t times = below(5); times; times--) write_meanwhile(member);
      if (below(3) || member->process->killed()) return;
      auto synced = member->image->sync();
      if (!member->process->killed()) run_->must(std::move(synced), "sync meanwhile");
    });
    others_go_on(member);
    return !cancels || done == total || below(2) == 0;
  };
}

void Family::remove(Member* member) {
  if (member->now.snapshots.empty()) return snapshot(member);
  std::string name = some_snapshot(*member);
  // Often the newest: the active layer is its heir, and is written during the merge.
  for (const SnapshotInfo& info : run_->must(member->image->snapshots(false), "snapshots"))
    if (info.current && below(2)) name = info.name;
  remove(member, name);
}

void Family::remove(Member* member, const std::string& name) {
  if (is_stood_on(*member, name)) {
    if (depth_ || below(2)) return write(member);
    orphan(member, name);
  }
  const std::string parent = run_->must(member->image->snapshot_info(name), "snapshot").parent;
  Content after = member->now;
  after.snapshots.erase(name);
  World world = member->world;
  world.snapshots.erase(name);
  member->removing = name;
  const bool done = attempt(member, "delete " + name, after, {member->world, world}, [&] {
    if (below(2)) member->process->fail_after(2 + below(8), EIO);
    return member->image->remove(name, between(member));
  });
  member->removing.clear();
  if (done) return settle(member, std::move(world));
  // The deletion waits. The neighbour is deleted as well, or the image gets another base.
  if (depth_) return;
  for (int i = 0; i < 6; i++) write(member);
  if (below(4) == 0) return rebase(member);
  if (member->now.snapshots.contains(parent) && !is_stood_on(*member, parent))
    remove(member, parent);
}

// Users delete snapshots on which images in other directories stand. All of these images end at
// once, because none may be left standing on a deleted snapshot.
void Family::orphan(Member* member, const std::string& snapshot) {
  std::vector<Member*> lost;
  std::function<void(const Member*, const std::string*)> find = [&](const Member* base,
                                                                    const std::string* name) {
    for (const auto& other : members_) {
      if (other->orphaned || other->base != base || (name && other->base_snapshot != *name))
        continue;
      lost.push_back(other.get());
      find(other.get(), nullptr);
    }
  };
  find(member, &snapshot);
  depth_++;  // no other process acts, and makes an image stand on one of them
  for (Member* other : lost) {
    close(other);
    other->reader = {};
  }
  for (Member* other : lost) other->orphaned = true;
  depth_--;
}

void Family::rollback(Member* member) {
  if (member->now.snapshots.empty()) return write(member);
  Content after = member->now;
  const std::string name = some_snapshot(*member);
  after.active = member->now.snapshots[name];
  member->changing = true;
  if (attempt(member, "rollback", after, {member->world, exactly(after)},
              [&] { return member->image->rollback(name); }))
    settle(member, exactly(after));
}

void Family::clone(Member* member) {
  if (members_.size() >= 5) return write(member);
  if (!member->now.snapshots.empty() && below(2)) return add_clone(member, some_snapshot(*member));
  const std::string name = "c" + std::to_string(names_++);
  Content after = member->now;
  after.snapshots[name] = after.active;
  uint64_t layer = 0;
  const auto freeze = [&]() -> Result<void> {
    auto frozen = member->image->freeze_for_clone(name);
    if (!frozen) return frozen.error();
    layer = *frozen;
    if (!member->image->layer_id(name)) after.snapshots.erase(name);
    return {};
  };
  if (!attempt(member, "snapshot for a clone", after, {member->world, exactly(after)}, freeze))
    return;
  if (after.snapshots.contains(name)) {
    settle(member, exactly(after));
    return add_clone(member, name);
  }
  settle(member, member->world);
  for (const SnapshotInfo& info : run_->must(member->image->snapshots(false), "snapshots"))
    if (info.id == layer) add_clone(member, info.name);
}

// To a snapshot of another image, or to none. The content does not change.
void Family::rebase(Member* member) {
  Member* const target = some_member([&](const Member& one) {
    return &one != member && !one.orphaned && !one.busy && !one.now.snapshots.empty();
  });
  BaseSpec base;
  if (target && below(2)) {
    base.snapshot = some_snapshot(*target);
    base.path = std::filesystem::relative(place(target->path)).string();
  }
  bool refused = false;
  if (!base.path.empty()) {
    member->next_base = target;
    member->next_snapshot = base.snapshot;
  }
  const auto change = [&]() -> Result<void> {
    auto outcome = member->image->rebase(base, !base.path.empty(), between(member));
    refused = !outcome && outcome.error().code == Code::kBaseLoop;
    return refused ? Result<void>() : outcome;
  };
  const bool done = attempt(member, "rebase", member->now, {member->world}, change);
  if (done) settle(member, refused ? member->world : exactly(member->now));
  // If it was interrupted, the image says whether it was done.
  const ImageInfo info = member->image->info();
  if (!info.has_base) {
    member->base = nullptr;
  } else if (member->next_base && info.base_resolved == place(target->path) &&
             info.base_snapshot == base.snapshot) {
    member->base = target;
    member->base_snapshot = base.snapshot;
  }
  member->next_base = nullptr;
}

// One process has both images open.
void Family::commit(Member* member) {
  Member* const base = member->base;
  if (!base || base->busy || depth_) return write(member);
  const std::string name = "m" + std::to_string(names_++);
  run_->must(base->image->close(), "close the base");
  base->image.reset();
  const Content stood = base->now;
  const Content before = member->now;
  settle(base, exactly(stood));
  Content with = stood;
  with.snapshots[name] = before.active;
  Content along = with;
  along.active = before.active;
  base->worlds = {exactly(stood), exactly(with), exactly(along)};
  member->next_base = base;
  member->next_snapshot = name;
  base->busy = base->changing = true;
  bool in_use = false;
  const auto into_base = [&]() -> Result<void> {
    auto opened = open_image(place(base->path), true, member->process.get());
    if (!opened) return opened.error();
    auto followed = member->image->commit_into(opened->get(), name, false, nullptr);
    in_use = !followed && followed.error().code == Code::kInUse;
    if (!followed && !in_use) return followed.error();
    return (*opened)->close();
  };
  const bool done = attempt(member, "commit", before, {member->world}, into_base);
  if (done) settle(member, in_use ? member->world : exactly(before));
  disk_.restore(base->path);
  open(base);
  base->now = read_content(*run_, *base->image);
  if (base->now != stood && base->now != with && base->now != along)
    run_->fail("the commit has spoiled the base");
  run_->must(base->image->sync(), "sync");
  settle(base, exactly(base->now));
  base->busy = base->changing = false;
  const ImageInfo info = member->image->info();
  if (info.base_snapshot == name) member->base_snapshot = name;
  member->next_base = nullptr;
}

void Family::compact(Member* member) {
  if (attempt(member, "compact", member->now, {member->world},
              [&] { return member->image->compact(between(member)); }))
    settle(member, exactly(member->now));
}

void Family::reopen(Member* member) {
  if (!attempt(member, "close", member->now, {member->world},
               [&] { return member->image->close(); }))
    return;
  settle(member, exactly(member->now));
  open(member);
}

// Everything is as its process sees it at this moment.
void Family::compare(Member* member) {
  if (read_content(*run_, *member->image) != member->now)
    run_->fail(member->path + ": " +
               difference(exactly(member->now), read_content(*run_, *member->image)));
}

void Family::read_on() {
  Member* const member = some_member(
      [](const Member& one) { return !one.orphaned && !one.is_passing && !one.is_replaced; });
  if (!member) return;
  LongReader& reader = member->reader;
  if (!reader.image)
    reader.image = run_->must(open_image(place(member->path), false, nullptr), "open for reading");
  if (!member->busy &&
      read_stamps(*run_, *reader.image, nullptr, member->path) != member->now.active)
    run_->fail(member->path + ": who opened it long ago reads something else");
  if (!member->now.snapshots.contains(reader.snapshot) || member->removing == reader.snapshot) {
    reader.view = nullptr;
    if (member->now.snapshots.empty() || !member->removing.empty()) return;
    reader.snapshot = some_snapshot(*member);
    reader.view = run_->must(reader.image->view(reader.snapshot), "view");
    reader.next = reader.next_mapped = 0;
  }
  if (!reader.view) return;
  std::vector<uint8_t> expected(member->now.snapshots[reader.snapshot].size() * kSector);
  for (size_t i = 0; i < expected.size() / kSector; i++)
    if (const uint64_t stamp = member->now.snapshots[reader.snapshot][i])
      fill_sector(stamp, i, expected.data() + i * kSector);
  std::vector<uint8_t> piece(
      std::min<uint64_t>(expected.size() - reader.next, (1 + below(64)) * kSector));
  run_->must(reader.image->read(reader.view.get(), reader.next, piece.data(), piece.size()),
             "read on");
  if (memcmp(piece.data(), expected.data() + reader.next, piece.size()) != 0)
    run_->fail(member->path + "@" + reader.snapshot +
               ": who reads it in pieces reads something else");
  reader.next = (reader.next + piece.size()) % expected.size();

  const ExtentBatch batch =
      run_->must(reader.image->map(reader.view.get(), reader.next_mapped, {}), "map on");
  for (const MapExtent& extent : batch.extents) {
    std::vector<uint8_t> found(extent.length);
    if (extent.kind == ExtentKind::kData) {
      const int descriptor = ::open(batch.chain[extent.depth].path.c_str(), O_RDONLY | O_CLOEXEC);
      // It was renamed after the reader had opened it.
      if (descriptor < 0 && errno == ENOENT) continue;
      CHECK(descriptor >= 0 && pread(descriptor, found.data(), found.size(),
                                     static_cast<off_t>(extent.file_offset)) >= 0);
      ::close(descriptor);
    }
    if (memcmp(found.data(), expected.data() + extent.offset, found.size()) != 0)
      run_->fail(member->path + "@" + reader.snapshot +
                 ": who maps it in batches finds something else");
  }
  reader.next_mapped = batch.next % expected.size();
}

// Opened long ago, or now: reads as before, or fails.
void Family::read_orphans() {
  for (const auto& member : members_) {
    if (!member->orphaned) continue;
    check_orphan(*member, place(member->path));
    LongReader& reader = member->reader;
    if (!reader.image) {
      auto opened = open_image(place(member->path), false, nullptr);
      if (!opened) continue;
      reader.image = std::move(*opened);
    }
    std::vector<uint8_t> bytes(member->now.active.size() * kSector);
    if (reader.image->read(nullptr, 0, bytes.data(), bytes.size()) &&
        read_stamps(*run_, *reader.image, nullptr, member->path) != member->now.active)
      run_->fail(member->path +
                 ": its base was deleted, and who opened it long ago reads something else");
  }
}

}  // namespace crash
