// The steps of a workload that read and change bytes.
#include <unistd.h>

#include <algorithm>

#include "engine/format/geometry.h"
#include "workload.h"

using namespace pcow;

namespace crash {

std::string Workload::some_snapshot() {
  auto at = now_.snapshots.begin();
  std::advance(at, static_cast<ptrdiff_t>(below(now_.snapshots.size())));
  return at->first;
}

void Workload::step() {
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
  if ((dice -= profile_.rename) < 0) return now_.snapshots.empty() ? snapshot() : rename();
  reopen();
}

void Workload::pick(uint64_t* first, uint64_t* count) {
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

void Workload::touch() {
  FaultWork work;
  const uint64_t offset = below(now_.active.size()) * kSector;
  Extent extent;
  const auto fault = [&]() -> Result<void> {
    auto made = image_->make_writable(
        offset, {.ahead = below(4) * block_size_, .whole_block = below(2) == 0}, &work);
    if (!made) return made.error();
    extent = *made;
    if (below(4) == 0)
      return image_->allocate_ahead(extent.offset + extent.length, 4 * block_size_);
    return {};
  };
  if (!attempt("fault", now_, {world_}, fault)) return;
  mapped_.push_back(extent);
  for (uint64_t stores = 1 + below(3); stores; stores--) store();
}

Workload::Stored Workload::store_sectors(bool flushed) {
  const Extent& extent = mapped_[below(mapped_.size())];
  const uint64_t sectors =
      std::min(extent.length, now_.active.size() * kSector - extent.offset) / kSector;
  const uint64_t within = below(sectors);
  const uint64_t count = std::min<uint64_t>(1 + below(12), sectors - within);
  const uint64_t stamp = ++run_->stamps;
  std::vector<uint8_t> bytes(count * kSector);
  const uint64_t first = extent.offset / kSector + within;
  for (uint64_t i = 0; i < count; i++) fill_sector(stamp, first + i, bytes.data() + i * kSector);
  const uint64_t place = extent.file_offset + within * kSector;
  for (uint64_t i = 0; i < count; i++)
    for (World& world : cuts_.worlds) world.active[first + i].insert(stamp);
  CHECK(pwrite(image_->descriptor(), bytes.data(), bytes.size(), static_cast<off_t>(place)) ==
        static_cast<ssize_t>(bytes.size()));
  cuts_.store_through_mapping(place, bytes.size(), bytes.data(), flushed);
  return {first, count, stamp};
}

void Workload::store() {
  const bool flushed = cuts_.in_memory() && below(2);
  const auto [first, count, stamp] = store_sectors(flushed);
  for (uint64_t i = first; i < first + count; i++) {
    now_.active[i] = stamp;
    if (flushed) world_.active[i].clear();
    world_.active[i].insert(stamp);
  }
  cuts_.worlds = {world_};
  cuts_.look();
}

void Workload::store_meanwhile() {
  const auto [first, count, stamp] = store_sectors(false);
  come_later(first, count, stamp);
}

void Workload::promote() {
  FaultWork work;
  const uint64_t offset = below(now_.active.size()) * kSector;
  if (below(2)) return move(offset);
  attempt("promotion", now_, {world_}, [&] { return image_->complete_chunk(offset, &work); });
}

void Workload::move(uint64_t offset) {
  const uint64_t from = offset / block_size_ * block_size_;
  const uint64_t to = from + block_size_ * (1 + below(8));
  FaultWork work;
  const auto copy = [&]() -> Result<void> {
    auto begun = ChunkMove::begin(image_.get(), offset);
    if (!begun) return begun.error();
    move_ = std::move(*begun);
    return move_->copy(from, to, &work);
  };
  if (!attempt("copy for a move", now_, {world_}, copy)) return;
  for (uint64_t steps = below(5); steps && move_; steps--) {
    const uint64_t kind = below(8);
    if (kind < 3 && !mapped_.empty())
      store();
    else if (kind < 4)
      touch();
    else if (kind < 5)
      write();
    else if (kind < 6)
      discard();
    else
      sync();
  }
  if (!move_) return;  // the image was opened again
  mapped_.clear();     // the monitor takes the range down first
  attempt("move", now_, {world_}, [&]() -> Result<void> {
    auto moved = move_->move(from, to);
    move_.reset();
    return moved ? Result<void>() : moved.error();
  });
}

void Workload::write() {
  uint64_t first, count;
  pick(&first, &count);
  write(first, count);
}

void Workload::write(uint64_t first, uint64_t count) {
  Content after = now_;
  World world = world_;
  for (uint64_t i = first; i < first + count; i++) world.active[i].insert(run_->stamps + 1);
  if (attempt("write", after, {world},
              [&] { return write_sectors(image_.get(), &after, first, count, run_); })) {
    now_ = after;
    for (uint64_t i = first; cuts_.in_memory() && i < first + count; i++)
      world.active[i] = {now_.active[i]};
    settle(std::move(world));
  }
}

void Workload::discard() {
  mapped_.clear();  // the monitor removes the range from the mapping first
  uint64_t first, count;
  pick(&first, &count);
  discard(first, count);
}

void Workload::discard(uint64_t first, uint64_t count) {
  Content after = now_;
  World world = world_;
  for (uint64_t i = first; i < first + count; i++) {
    after.active[i] = 0;
    world.active[i].insert(0);
  }
  const auto discard = [&] {
    return with_fetches(*run_, image_.get(),
                        [&] { return image_->discard(first * kSector, count * kSector); });
  };
  if (attempt("discard", after, {world}, discard)) settle(std::move(world));
}

void Workload::fill() {
  const uint64_t blocks = run_->registry.size() * kSector / block_size_;
  const uint64_t first = below(blocks);
  const uint64_t layer = run_->must(image_->layer_id("s0"), "the remote layer");
  if (attempt("fill", now_, {world_},
              [&] { return fetch(*run_, image_.get(), layer, first, 1 + below(blocks - first)); }))
    settle(world_);
}

// The registry has these blocks, so their content stays.
void Workload::give_back() {
  const uint64_t sectors = block_size_ / kSector;
  const uint64_t blocks = run_->registry.size() / sectors;
  const uint64_t first = below(blocks);
  std::vector<RemoteEntry> entries;
  for (uint64_t count = 1 + below(blocks - first), at = first; at < first + count; at++)
    if (const uint16_t mask = remote_mask(at)) entries.push_back({static_cast<uint32_t>(at), mask});
  const uint64_t layer = run_->must(image_->layer_id("s0"), "the remote layer");
  const auto give = [&]() -> Result<void> {
    auto given = image_->give_back(layer, entries);
    return given ? Result<void>() : given.error();
  };
  if (attempt("give back", now_, {world_}, give)) settle(world_);
}

// The sub-blocks of a block that are in the registry.
uint16_t Workload::remote_mask(uint64_t block) const {
  if (block % 4 == 3) return 0;
  const uint64_t sub_blocks = std::min<uint64_t>(16, block_size_ / kPageSize);
  const uint64_t held = block % 4 == 2 ? std::max<uint64_t>(1, sub_blocks / 2) : sub_blocks;
  return static_cast<uint16_t>((1u << held) - 1);
}

void Workload::sync() {
  const Content before = now_;
  if (attempt("sync", now_, {world_}, [&] { return interrupted([&] { return image_->sync(); }); }))
    settle(exactly(before));
}

}  // namespace crash
