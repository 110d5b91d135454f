#include "workload.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "engine/format/geometry.h"

using namespace pcow;

namespace crash {

void Workload::reuse_during_a_merge() {
  constexpr uint64_t kShared = 16;  // blocks: so few that they are the first that a full file uses
  constexpr uint64_t kReused = 40;
  const uint64_t sectors = block_size_ / kSector;
  const uint64_t second_chunk = kBlocksPerChunk * sectors;
  run_->where = "reuse during a merge";
  prepare();
  write(0, kShared * sectors);
  resize(2 * second_chunk);
  // So that the merge has two chunks, and the file has no other free blocks for data.
  write(second_chunk, second_chunk);
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

void Workload::lazy(int steps) {
  const uint64_t sectors = block_size_ / kSector;
  run_->where = profile_.name;
  prepare();
  const auto set_source = [&] { return image_->set_source({{1, 2, 3}}); };
  while (!attempt("source", now_, {world_}, set_source)) continue;  // again, if the disk fails
  settle(world_);

  std::vector<RemoteEntry> entries;
  Content after = now_;
  World world = world_;
  run_->registry.assign(now_.active.size() / sectors * sectors, 0);
  const uint64_t stamp = ++run_->stamps;
  for (uint32_t block = 0; block < run_->registry.size() / sectors; block++) {
    const uint16_t mask = remote_mask(block);
    if (!mask) continue;
    entries.push_back({block, mask});
    for (uint64_t i = 0; i < static_cast<uint64_t>(std::popcount(mask)) * kPageSize / kSector;
         i++) {
      const uint64_t sector = block * sectors + i;
      run_->registry[sector] = after.active[sector] = stamp;
      world.active[sector].insert(stamp);
    }
  }
  cuts_.draft = true;
  // If the disk fails here, a draft is given up.
  if (!attempt("mark remote", after, {world}, [&] { return image_->mark_remote(entries); })) return;
  settle(std::move(world));
  snapshot();
  if (now_.snapshots.empty()) return;
  cuts_.draft = false;
  for (int i = 0; i < steps; i++) {
    run_->where = std::string(profile_.name) + ", blocks of " + std::to_string(block_size_) +
                  ", step " + std::to_string(i);
    if (profile_.kills && run_->random() % 3 == 0) cuts_.kill_after(run_->random() % 12);
    switch (below(4)) {
      case 0: fill(); break;
      case 1: give_back(); break;
      default: step();
    }
  }
  uint64_t left = 0;
  const auto fetch_everything = [&]() -> Result<void> {
    PCOW_TRY(fetch_all(*run_, image_.get()));
    auto counted = image_->remote_bytes();
    if (!counted) return counted.error();
    left = *counted;
    return {};
  };
  do {  // again, if the process is killed, or the disk fails
    left = 1;
    if (attempt("fetch everything", now_, {world_}, fetch_everything)) settle(world_);
  } while (left);
  if (attempt("no source", now_, {world_}, [&] { return image_->set_source(std::nullopt); }))
    settle(exactly(now_));
  write();
  finish();
}

void Workload::go(int steps) {
  prepare();
  for (int i = 0; i < steps; i++) {
    run_->where = std::string(profile_.name) + ", blocks of " + std::to_string(block_size_) +
                  ", step " + std::to_string(i);
    if (profile_.kills && run_->random() % 3 == 0) cuts_.kill_after(run_->random() % 12);
    step();
  }
  finish();
}

void Workload::finish() {
  attempt("close", now_, {world_}, [&] { return image_->close(); });
  const auto closed = run_->must(open_image(image_path_, false, nullptr), "open what was closed");
  if (read_content(*run_, *closed) != now_) run_->fail("what was closed holds something else");
}

void Workload::prepare() {
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

Result<void> Workload::open_again() {
  auto opened = open_image(image_path_, true, &cuts_);
  if (!opened) return opened.error();
  image_ = std::move(*opened);
  return {};
}

void Workload::make_base(const std::string& name, const CreateOptions& options) {
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
  if (!profile_.commit)
    CHECK(link(path.c_str(), (directory_ / ("states/" + name + ".pcow")).c_str()) == 0);
  bases_[name] = content.active;
}

void Workload::revive(const Content& after) {
  run_->kills++;
  mapped_.clear();
  move_.reset();
  const std::string path = directory_ / ("image" + std::to_string(run_->kills) + ".pcow");
  cuts_.go_on_as(path);
  image_path_ = path;
  image_.reset();
  cuts_.begin("open after a kill");
  image_ = run_->must(open_image(path, true, &cuts_), "open after a kill");
  now_ = content_between(after);
  // Whichever of the worlds was left, it is on the disk now, except what was written and not
  // synced.
  World world = exactly(now_);
  for (const World& possible : cuts_.worlds) {
    if (possible.active.size() != world.active.size() || possible.snapshots != world.snapshots)
      continue;
    for (size_t i = 0; i < world.active.size(); i++)
      world.active[i].insert(possible.active[i].begin(), possible.active[i].end());
  }
  settle(std::move(world));
}

Content Workload::content_between(const Content& after) {
  Content found = read_content(*run_, *image_);
  if (found.snapshots != now_.snapshots && found.snapshots != after.snapshots)
    run_->fail("what was not done to its end has changed snapshots");
  if (found.active.size() != now_.active.size() && found.active.size() != after.active.size())
    run_->fail("what was not done to its end has changed the size");
  for (size_t i = 0; i < found.active.size(); i++) {
    const bool as_before = i < now_.active.size() && found.active[i] == now_.active[i];
    if (!as_before && found.active[i] != after.active[i])
      run_->fail("what was not done to its end has lost a write");
  }
  return found;
}

void Workload::survive(const Content& after, const Error& error, bool sync_failed) {
  if (error.err != run_->fault.err) run_->fail("the fault became another error: " + error.message);
  mapped_.clear();
  move_.reset();
  const std::vector<World> meanwhile = cuts_.worlds;
  if (image_ && sync_failed) {
    const auto again = image_->sync();
    const bool closed = !again && again.error().code == Code::kClosed;
    if (again || (!closed && again.error().message.find("until the image is opened again") ==
                                 std::string::npos))
      run_->fail("a failed sync was forgotten");
    if (!closed && image_->close()) run_->fail("a failed sync was forgotten by closing");
  }
  if (image_ && !sync_failed && image_->sync()) {
    now_ = content_between(after);
    // The operation can be repeated, and opening the image again finishes what was begun.
    run_->must(image_->close(), "close after an error");
  }
  image_.reset();
  run_->must(open_again(), "open after an error");
  now_ = content_between(after);
  run_->must(image_->sync(), "sync after an error");
  settle(exactly(now_));
}

void Workload::settle(World world) {
  world_ = std::move(world);
  for (const auto& [sector, stamps] : later_)
    world_.active[sector].insert(stamps.begin(), stamps.end());
  later_.clear();
  cuts_.worlds = {world_};
  cuts_.look();
}

void Workload::meanwhile() {
  const uint64_t kind = below(4);
  if (kind == 0 && !mapped_.empty()) return store_meanwhile();
  if (kind == 1 && mapped_.empty()) return discard_meanwhile();
  write_meanwhile();
}

void Workload::discard_meanwhile() {
  uint64_t first, count;
  pick(&first, &count);
  discard_meanwhile(first, count);
}

void Workload::discard_meanwhile(uint64_t first, uint64_t count) {
  come_later(first, count, 0);
  run_->must(image_->discard(first * kSector, count * kSector), "discard meanwhile");
}

void Workload::write_meanwhile() {
  uint64_t first, count;
  pick(&first, &count);
  write_meanwhile(first, count);
}

void Workload::write_meanwhile(uint64_t first, uint64_t count) {
  Content content = now_;
  come_later(first, count, run_->stamps + 1);
  run_->must(write_sectors(image_.get(), &content, first, count, run_), "write meanwhile");
}

void Workload::come_later(uint64_t first, uint64_t count, uint64_t stamp) {
  for (uint64_t i = first; i < first + count; i++) {
    auto& stamps = later_[i];
    if (stamps.empty()) stamps.push_back(now_.active[i]);
    stamps.push_back(stamp);
    for (World& world : cuts_.worlds) world.active[i].insert(stamp);
  }
}

}  // namespace crash
