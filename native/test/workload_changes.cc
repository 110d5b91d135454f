// The steps of a workload that change the image's structure.
#include <algorithm>

#include "engine/format/geometry.h"
#include "workload.h"

using namespace pcow;

namespace crash {

void Workload::snapshot() {
  const std::string name = "s" + std::to_string(names_++);
  if (profile_.interrupted) return snapshot_in_steps(name);
  mapped_.clear();
  Content after = now_;
  after.snapshots[name] = now_.active;
  if (attempt("snapshot", after, {world_, exactly(after)}, [&] { return image_->snapshot(name); }))
    settle(exactly(after));
}

void Workload::snapshot_in_steps(const std::string& name) {
  std::unique_ptr<PendingSnapshot> pending;
  const auto prepare = [&]() -> Result<void> {
    auto prepared =
        interrupted([&] { return PendingSnapshot::prepare(image_.get(), name, false); });
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

void Workload::remove() {
  // Enough for blocks to be released, and to be used again if that is allowed.
  const Progress between = [&](uint64_t, uint64_t) {
    if (!profile_.interrupted || run_->fault.err || below(3) == 0) return true;
    for (uint64_t times = mapped_.empty() ? below(5) : 0; times; times--) discard_meanwhile();
    for (uint64_t times = below(3); times; times--) run_->must(image_->sync(), "sync meanwhile");
    for (uint64_t times = below(5); times; times--) write_meanwhile();
    return true;
  };
  remove(between);
}

void Workload::remove(const std::string& name, const Progress& between) {
  cuts_.whole_checksums = false;  // what an heir takes over has none
  Content after = now_;
  after.snapshots.erase(name);
  World world = world_;
  world.snapshots.erase(name);
  if (attempt("remove", after, {world_, world}, [&] { return image_->remove(name, between); }))
    settle(std::move(world));
}

void Workload::rename() {
  const std::string from = some_snapshot();
  const std::string to = "r" + std::to_string(names_++);
  Content after = now_;
  after.snapshots[to] = after.snapshots.extract(from).mapped();
  World world = world_;
  world.snapshots[to] = world.snapshots.extract(from).mapped();
  if (attempt("rename", after, {world_, world},
              [&] { return interrupted([&] { return image_->rename_snapshot(from, to); }); }))
    settle(exactly(after));
}

void Workload::rollback() {
  mapped_.clear();
  Content after = now_;
  const std::string name = some_snapshot();
  after.active = now_.snapshots[name];
  if (attempt("rollback", after, {world_, exactly(after)}, [&] { return image_->rollback(name); }))
    settle(exactly(after));
}

void Workload::clone() {
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

void Workload::resize() {
  if (now_.active.size() * kSector > 40 * uint64_t{block_size_}) return write();
  resize(now_.active.size() + 8 * (1 + below(40)));
}

void Workload::resize(uint64_t sectors) {
  mapped_.clear();
  Content after = now_;
  after.active.resize(sectors);
  World world = world_;
  world.active.resize(after.active.size(), {0});
  if (attempt("resize", after, {world_, world},
              [&] { return image_->resize(after.active.size() * kSector); }))
    settle(std::move(world));
}

void Workload::shrink() {
  Content after = now_;
  after.active.resize(now_.active.size() - std::min(now_.active.size() - 128, 8 * (1 + below(30))));
  World world = world_;
  world.active.resize(after.active.size());
  bool refused = false;  // an image is never smaller than the layer on which it stands
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

void Workload::rebase() {
  cuts_.whole_checksums = false;
  BaseSpec base;
  base.snapshot = "ground";
  const uint64_t which = below(3);
  base.path = directory_ / (which == 1 ? "other.pcow" : "base.pcow");
  if (attempt("rebase", now_, {world_}, [&] { return image_->rebase(base, which != 0, nullptr); }))
    settle(exactly(now_));
}

void Workload::commit() {
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

void Workload::write_zeros() {
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

void Workload::compact() {
  if (attempt("compact", now_, {world_}, [&] { return image_->compact(nullptr); }))
    settle(exactly(now_));
}

void Workload::add_checksums() {
  if (attempt("add checksums", now_, {world_}, [&] { return image_->add_checksums(nullptr); }))
    settle(exactly(now_));
}

void Workload::remove_checksums() {
  attempt("remove checksums", now_, {world_}, [&] { return image_->remove_checksums(); });
}

void Workload::reopen() {
  mapped_.clear();
  if (!attempt("close", now_, {world_}, [&] { return image_->close(); })) return;
  settle(exactly(now_));
  image_.reset();
  cuts_.share();
  if (run_->persistent && below(3) == 0) cuts_.carry_over();
  attempt("open", now_, {world_}, [&] { return open_again(); });
}

}  // namespace crash
