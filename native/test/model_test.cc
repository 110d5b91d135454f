// Random operations on a small family of images (a base, clones, clones of clones), compared with
// plain memory: after any sequence every image, and every snapshot of it, equals the model. This is
// checked with the engine, with a reader that was opened once and lives through all changes, and
// with a second reader, which was written from docs/format.md alone. Images are sometimes opened
// again, as after a clean end and as after a killed process. Between the chunks of a merge they are
// used, as a running guest would, and changes are interrupted anywhere, by a cancellation or a full
// disk; then other operations are done while they wait. In some families a snapshot is lazy: its
// blocks are remote, are filled when something needs them, and are given back.
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "check.h"
#include "engine/disk/file.h"
#include "model_compare.h"
#include "moves.h"
#include "second_reader.h"

using namespace pcow;

namespace {

// Observes the operations on one image: an operation fails, or the process counts as dead.
class Failures : public FileObserver {
 public:
  // One operation fails, after so many others of its kind. ENOSPC: one that needs space; EIO: any
  // but a sync, because failures of syncs are never forgotten (sync_failure_test).
  void fail_after(uint64_t operations, int err) {
    left_ = operations;
    err_ = err;
  }
  // From now on nothing fails. Returns whether anything has failed since the last call.
  bool recover() {
    err_ = 0;
    return std::exchange(failed_, false);
  }
  // From now on nothing reaches the file.
  void kill() { dead_ = true; }

  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (dead_) return EIO;
    const bool needs_space = operation == FileOperation::kWrite ||
                             operation == FileOperation::kAllocate ||
                             operation == FileOperation::kResize;
    const bool is_sync =
        operation == FileOperation::kSync || operation == FileOperation::kWriteBack;
    const bool eligible = err_ == ENOSPC
                              ? needs_space
                              : err_ == EIO && !is_sync && operation != FileOperation::kStore;
    if (!eligible || left_-- > 0) return 0;
    failed_ = true;
    return std::exchange(err_, 0);
  }

 private:
  uint64_t left_ = 0;
  int err_ = 0;
  bool failed_ = false;
  bool dead_ = false;
};

// A reader in another process: opened once, while all kinds of things happen to the image and to
// its bases.
struct LongReader {
  std::unique_ptr<Image> image;
  std::shared_ptr<View> view;  // of a snapshot, which is read piece by piece
  std::string snapshot;
  uint64_t next = 0;
  uint64_t next_mapped = 0;
};

// What a registry has of a layer.
struct Stored {
  Bytes content;
  std::map<uint32_t, uint16_t> masks;  // of blocks
};

struct Modelled {
  std::string path;
  std::string uuid;
  std::map<uint64_t, Stored> registry;  // by the id of the layer
  std::unique_ptr<Failures> failures;
  std::unique_ptr<Image> image;
  LongReader reader;
  Bytes active;
  std::map<std::string, Bytes> snapshots;
  std::string base;  // "path@snapshot"
};

struct Family {
  Family(uint64_t seed, SecondReader* second_reader) : random(seed), second_reader(second_reader) {}
  std::mt19937_64 random;
  SecondReader* const second_reader;
  bool many_deletions = false;
  bool lazy = false;
  TemporaryDirectory directory;
  std::vector<Modelled> images;
  std::map<std::string, int> bases;  // "path@snapshot": how many images stand on it
  int names = 0;

  std::string latest;  // the newest base

  uint64_t below(uint64_t limit) { return random() % limit; }
  // An image that stood on one base (null: on none) now stands on another ("": on none).
  void stand(std::string* from, const std::string& to) {
    if (from && !from->empty()) bases[*from]--;
    if (!to.empty()) bases[to]++;
    if (from) *from = to;
    latest = to;
  }
};

void open_image(Modelled* modelled) {
  OpenOptions options;
  options.write = true;
  modelled->image.reset();
  modelled->failures = std::make_unique<Failures>();
  options.observer = modelled->failures.get();
  modelled->image = MUST(Image::open(modelled->path, options));
  modelled->uuid = modelled->image->info().uuid;
}

// Fills some blocks of a lazy image, as a mount would, which fetches whole pieces.
void fill(Family* family, Modelled* m, uint64_t layer, uint64_t block) {
  const Bytes& content = m->registry.at(layer).content;
  const uint64_t block_size = m->image->info().block_size;
  const uint64_t end =
      std::min<uint64_t>(content.size() / block_size, block + 1 + family->below(4));
  const auto fill = [&] {
    return m->image->fill(layer, block, content.data() + block * block_size,
                          (end - block) * block_size);
  };
  auto filled = fill();
  // It fails like everything else, and is done again.
  if (!filled && m->failures->recover()) filled = fill();
  MUST(std::move(filled));
}

// Everything, for a reader who cannot wait for it.
void fill_all(Family* family) {
  for (Modelled& m : family->images)
    for (const LayerInfo& layer : MUST(m.image->layers()))
      for (const RemoteEntry& entry : MUST(m.image->remote_blocks(layer.id, 0)).blocks)
        fill(family, &m, layer.id, entry.block);
}

void give_some_back(Family* family) {
  for (Modelled& m : family->images) {
    for (const auto& [layer, stored] : m.registry) {
      std::vector<RemoteEntry> blocks;
      for (const auto& [block, mask] : stored.masks)
        if (family->below(2)) blocks.push_back({block, mask});
      MUST(m.image->give_back(layer, blocks));
    }
  }
}

// The image becomes lazy, with a snapshot whose blocks are in a registry.
void make_lazy(Family* family, Modelled* m) {
  const uint64_t block_size = m->image->info().block_size;
  const uint64_t sub = m->image->info().sub_block_size;
  const uint64_t blocks = (m->active.size() + block_size - 1) / block_size;
  Stored stored;
  stored.content.resize(blocks * block_size);
  std::vector<RemoteEntry> entries;
  for (uint32_t block = 0; block < blocks && entries.size() < 300; block++) {
    if (family->below(3) == 0) continue;
    const uint64_t end = std::min(m->active.size(), (block + 1) * block_size);
    uint16_t mask = 0;
    for (uint64_t at = block * block_size; at < end; at += sub) {
      if (family->below(3) == 0) continue;
      mask |= static_cast<uint16_t>(1u << ((at % block_size) / sub));
      for (uint64_t byte = at; byte < std::min(end, at + sub); byte++)
        stored.content[byte] = static_cast<uint8_t>(family->random());
    }
    if (!mask) continue;
    stored.masks[block] = mask;
    entries.push_back({block, mask});
  }
  MUST(m->image->set_source({{1, 2, 3}}));
  MUST(m->image->mark_remote(entries));
  MUST(m->image->snapshot("lazy"));
  std::copy_n(stored.content.begin(), m->active.size(), m->active.begin());
  m->snapshots["lazy"] = m->active;
  m->registry[MUST(m->image->layer_id("lazy"))] = std::move(stored);
}

// The changes between neighbours in the list, in both directions: after many calls, these are all
// kinds of pairs.
void compare_maps(const Modelled& modelled) {
  std::vector<std::pair<std::shared_ptr<View>, const Bytes*>> layers = {
      {nullptr, &modelled.active}};
  for (const auto& [name, bytes] : modelled.snapshots)
    layers.emplace_back(MUST(modelled.image->view(name)), &bytes);
  const auto* last = &layers.back();
  for (const auto& layer : layers) {
    const auto& [view, bytes] = layer;
    compare_map(*modelled.image, view.get(), *bytes, modelled.path);
    CHECK(compare_changes(*modelled.image, view.get(), *bytes, view.get(), *bytes) == 0);
    compare_changes(*modelled.image, last->first.get(), *last->second, view.get(), *bytes);
    compare_changes(*modelled.image, view.get(), *bytes, last->first.get(), *last->second);
    last = &layer;
  }
}

void compare_all(const Modelled& modelled) {
  compare(*modelled.image, nullptr, modelled.active, modelled.path);
  const auto listed = MUST(modelled.image->snapshots(true));
  for (const auto& [name, bytes] : modelled.snapshots) {
    auto view = MUST(modelled.image->view(name));
    compare(*modelled.image, view.get(), bytes, modelled.path + "@" + name);
  }
  size_t named = 0;
  for (const SnapshotInfo& info : listed) named += modelled.snapshots.contains(info.name);
  CHECK(named == modelled.snapshots.size() && listed.size() == named);
  compare_maps(modelled);
}

std::string some_snapshot(Family* family, const Modelled& modelled) {
  auto at = modelled.snapshots.begin();
  std::advance(at, static_cast<ptrdiff_t>(family->below(modelled.snapshots.size())));
  return at->first;
}

// A reader that was opened long ago continues where it stopped, in the bytes of a snapshot and in
// its map.
void read_on(Family* family, Modelled* m) {
  LongReader& reader = m->reader;
  if (!reader.image) reader.image = MUST(Image::open(m->path, {}));
  compare(*reader.image, nullptr, m->active, m->path + " (opened long ago)");
  if (!m->snapshots.contains(reader.snapshot)) {
    if (reader.view) {
      char byte;
      FAILS(reader.image->read(reader.view.get(), 0, &byte, 1), Code::kNotFound);
    }
    reader.view = nullptr;
    if (m->snapshots.empty()) return;
    reader.snapshot = some_snapshot(family, *m);
    reader.view = MUST(reader.image->view(reader.snapshot));
    reader.next = reader.next_mapped = 0;
  }
  const Bytes& expected = m->snapshots[reader.snapshot];
  Bytes piece(std::min<uint64_t>(expected.size() - reader.next, 1 + family->below(200000)));
  CHECK(MUST(with_remote([&] {
          return reader.image->read(reader.view.get(), reader.next, piece.data(), piece.size());
        })) == piece.size());
  CHECK(memcmp(piece.data(), expected.data() + reader.next, piece.size()) == 0);
  reader.next = (reader.next + piece.size()) % expected.size();
  const uint64_t next =
      compare_batch(*reader.image, reader.view.get(), reader.next_mapped, expected,
                    m->path + "@" + reader.snapshot + " (opened long ago)");
  reader.next_mapped = next % expected.size();
}

// Few places in each chunk of an image that has several chunks, so that operations meet.
uint64_t some_offset(Family* family, uint64_t size, uint32_t block_size) {
  const uint64_t chunk = uint64_t{512} * block_size;
  if (size <= chunk) return family->below(size);
  const uint64_t start = family->below((size + chunk - 1) / chunk) * chunk;
  return start + family->below(std::min<uint64_t>(size - start, 5 * block_size));
}

void write_some(Family* family, Modelled* m, uint32_t block_size) {
  const uint64_t offset = some_offset(family, m->active.size(), block_size);
  const uint64_t longest = family->below(3) ? 6000 : 3 * block_size;
  const uint64_t length = std::min(m->active.size() - offset, 1 + family->below(longest));
  Bytes data(length);
  for (auto& byte : data) byte = static_cast<uint8_t>(family->random());
  MUST(with_remote([&] { return m->image->write(offset, data.data(), length); }));
  memcpy(m->active.data() + offset, data.data(), length);
}

void discard_some(Family* family, Modelled* m, uint32_t block_size) {
  const uint64_t offset = some_offset(family, m->active.size(), block_size);
  const uint64_t length = std::min(m->active.size() - offset, 1 + family->below(4 * block_size));
  MUST(with_remote([&] { return m->image->discard(offset, length); }));
  memset(m->active.data() + offset, 0, length);
}

// As for a guest with too many mappings, which goes on meanwhile.
void move_some(Family* family, Modelled* m, uint32_t block_size) {
  const auto meanwhile = [&] {
    while (family->below(3) == 0) {
      const uint64_t dice = family->below(8);
      if (dice < 5)
        write_some(family, m, block_size);
      else if (dice < 7)
        discard_some(family, m, block_size);
      else
        MUST(m->image->sync());
    }
  };
  move_chunk(m->image.get(), some_offset(family, m->active.size(), block_size), meanwhile);
}

// A long operation that may be interrupted: by a cancellation between two chunks, or anywhere by a
// failure. The image is used between chunks.
Progress between_chunks(Family* family, Modelled* m, uint32_t block_size) {
  const bool cancel = family->below(4) == 0;
  const auto fail_soon = [=] {
    if (!cancel && family->below(2))
      m->failures->fail_after(family->below(16), family->below(2) ? ENOSPC : EIO);
  };
  fail_soon();
  return [=](uint64_t done, uint64_t total) {
    // What the guest does meanwhile does not fail.
    const bool failed = m->failures->recover();
    for (uint64_t count = family->below(8); count; count--) {
      if (family->below(2)) {
        write_some(family, m, block_size);
      } else {
        discard_some(family, m, block_size);
      }
    }
    if (family->below(8) == 0) move_some(family, m, block_size);
    if (family->below(3) == 0) MUST(m->image->sync());
    compare(*m->image, nullptr, m->active, m->path + " in the middle of a change");
    read_on(family, m);
    if (!failed) fail_soon();
    return !cancel || (done != 0 && done == total) || family->below(3) == 0;
  };
}

// Whether it was done. If not, it must have been interrupted.
template <typename T>
bool is_done(Modelled* m, const Result<T>& outcome) {
  m->failures->recover();
  if (outcome) return true;
  const Code code = outcome.error().code;
  if (code == Code::kCancelled || code == Code::kNoSpace || code == Code::kIo) return false;
  if (code == Code::kRemote) return false;  // a deletion, which would need more than one block
  fprintf(stderr, "%s: %s: %s\n", m->path.c_str(), code_name(code),
          outcome.error().message.c_str());
  exit(1);
}

// Whether it was finished.
bool remove(Family* family, Modelled* m, uint32_t block_size, const std::string& name) {
  const Progress progress = between_chunks(family, m, block_size);
  const bool done = is_done(m, m->image->remove(name, [&](uint64_t reached, uint64_t total) {
    m->snapshots.erase(name);  // as soon as the deletion has begun
    return progress(reached, total);
  }));
  if (!m->image->layer_id(name)) m->snapshots.erase(name);
  return done;
}

void remove_some(Family* family, Modelled* m, uint32_t block_size) {
  const std::string name = some_snapshot(family, *m);
  if (family->bases[m->path + "@" + name]) return;
  const std::string below = MUST(m->image->snapshot_info(name)).parent;
  if (remove(family, m, block_size, name) || family->below(2)) return;
  // The deletion waits, and the snapshot on which this one stands will be deleted as well.
  for (uint64_t count = family->below(8); count; count--) write_some(family, m, block_size);
  if (!below.empty() && !family->bases[m->path + "@" + below]) remove(family, m, block_size, below);
}

// Readers of the snapshot, and images that stand on it, continue with it under its new name.
void rename_some(Family* family, Modelled* m, uint32_t block_size) {
  const std::string from = some_snapshot(family, *m);
  const std::string to = "r" + std::to_string(family->names++);
  FAILS(m->image->rename_snapshot(from, from), Code::kExists);
  FAILS(m->image->rename_snapshot("none", to), Code::kNotFound);
  auto view = MUST(m->image->view(from));
  const uint64_t layer = MUST(m->image->layer_id(from));
  if (family->below(2)) m->failures->fail_after(family->below(6), family->below(2) ? ENOSPC : EIO);
  const bool done = is_done(m, m->image->rename_snapshot(from, to));
  if (done) CHECK(MUST(m->image->layer_id(to)) == layer);
  const bool renamed = m->image->layer_id(to).ok();
  CHECK(renamed != m->image->layer_id(from).ok() && (renamed || !done));
  write_some(family, m, block_size);
  if (!renamed) return;
  m->snapshots[to] = m->snapshots.extract(from).mapped();
  compare(*m->image, view.get(), m->snapshots[to], m->path + "@" + to);
  if (m->reader.snapshot == from) m->reader.snapshot = to;
  const std::string old = m->path + "@" + from, now = m->path + "@" + to;
  if (auto count = family->bases.extract(old)) family->bases[now] = count.mapped();
  for (Modelled& other : family->images) {
    if (other.base != old) continue;
    other.base = now;
    CHECK(other.image->info().base_snapshot == to);
  }
}

// Written zeros, for compact().
void put_zeros(Family* family, Modelled* m, uint32_t block_size) {
  const uint64_t offset = family->below(m->active.size()) / 4096 * 4096;
  const uint64_t length = std::min<uint64_t>(m->active.size() - offset, 2 * block_size);
  const Bytes zeros(length);
  MUST(with_remote([&] { return m->image->write(offset, zeros.data(), length); }));
  memset(m->active.data() + offset, 0, length);
}

void shrink(Family* family, Modelled* m) {
  const uint64_t size =
      m->active.size() - std::min(m->active.size() - 65536, 4096 * family->below(60));
  auto shrunk = m->image->resize(size, true);
  if (shrunk) {
    m->active.resize(size);
  } else {
    // Not smaller than the layer on which it stands.
    CHECK(shrunk.error().code == Code::kInvalid && !(m->snapshots.empty() && m->base.empty()));
  }
}

// To a random snapshot of the family, or to none.
void rebase(Family* family, Modelled* m, uint32_t block_size) {
  const Progress progress = between_chunks(family, m, block_size);
  const Modelled& target = family->images[family->below(family->images.size())];
  if (family->below(3) == 0 || target.snapshots.empty()) {
    if (is_done(m, with_remote([&] { return m->image->rebase({}, false, progress); })))
      family->stand(&m->base, "");
    return;
  }
  BaseSpec base;
  base.path = target.path;
  base.snapshot = some_snapshot(family, target);
  auto outcome = with_remote([&] { return m->image->rebase(base, true, progress); });
  // A loop, or a base that is larger.
  const bool refused = !outcome && (outcome.error().code == Code::kBaseLoop ||
                                    outcome.error().code == Code::kInvalid);
  if (refused) m->failures->recover();
  if (!refused && is_done(m, outcome)) family->stand(&m->base, base.path + "@" + base.snapshot);
}

void commit(Family* family, Modelled* m, uint32_t block_size) {
  if (m->base.empty()) return;
  const std::string path = m->base.substr(0, m->base.find('@'));
  for (Modelled& base : family->images) {
    if (base.path != path) continue;
    const std::string name = "c" + std::to_string(family->names++);
    // Covers what is frozen when it begins; writes continue.
    Bytes frozen;
    auto followed = with_remote([&] {
      frozen = m->active;
      return m->image->commit_into(base.image.get(), name, false,
                                   between_chunks(family, m, block_size));
    });
    if (!m->snapshots.empty()) {
      CHECK(!followed && followed.error().code == Code::kInUse);
      m->failures->recover();
      return;
    }
    const bool done = is_done(m, followed);
    // If it was interrupted, the base may already have the snapshot, and its own content may have
    // changed as well.
    if (!base.image->layer_id(name)) {
      CHECK(!done);
      return;
    }
    base.snapshots[name] = frozen;
    if (done ? *followed : reads_as(*base.image, frozen)) base.active = frozen;
    if (done) family->stand(&m->base, path + "@" + name);
    return;
  }
  CHECK(false);
}

// After a clean end, or after a death.
void reopen(Family* family, Modelled* m) {
  fill_all(family);
  if (family->below(2)) {
    MUST(m->image->close());
  } else {
    m->failures->kill();
  }
  m->image.reset();
  family->second_reader->compare(m->path, m->active, m->snapshots);
  open_image(m);
  compare_all(*m);
}

void step(Family* family, uint32_t block_size) {
  Modelled& m = family->images[family->below(family->images.size())];
  const uint64_t size = m.active.size();
  uint64_t dice = family->below(1000);
  if (family->many_deletions && dice % 3 == 0) dice = dice % 2 ? 800 : 880;
  if (dice < 480) {
    write_some(family, &m, block_size);
  } else if (dice < 490) {
    move_some(family, &m, block_size);
  } else if (dice < 520) {
    put_zeros(family, &m, block_size);
  } else if (dice < 535) {
    is_done(&m, m.image->compact(between_chunks(family, &m, block_size)));
  } else if (dice < 550) {
    rebase(family, &m, block_size);
  } else if (dice < 560) {
    commit(family, &m, block_size);
  } else if (dice < 680) {
    discard_some(family, &m, block_size);
  } else if (dice < 760) {
    MUST(m.image->sync());
  } else if (dice < 820) {
    const std::string name = "s" + std::to_string(family->names++);
    if (m.snapshots.size() < 8) {
      MUST(m.image->snapshot(name));
      m.snapshots[name] = m.active;
    }
  } else if (dice < 840 && !m.snapshots.empty()) {
    const std::string name = some_snapshot(family, m);
    MUST(m.image->rollback(name));
    m.active = m.snapshots[name];
  } else if (dice < 900 && !m.snapshots.empty()) {
    remove_some(family, &m, block_size);
  } else if (dice < 910 && family->images.size() < 5) {
    const std::string name = "clone" + std::to_string(family->names++);
    const uint64_t layer = MUST(m.image->freeze_for_clone(name));
    const std::string path = family->directory / (name + ".pcow");
    CreateOptions options;
    options.has_base = true;
    options.base.path = m.path;
    options.base.layer = layer;
    MUST(create_image(path, options));
    for (const SnapshotInfo& info : MUST(m.image->snapshots(false))) {
      if (info.id != layer) continue;
      m.snapshots[info.name] = m.active;
      family->stand(nullptr, m.path + "@" + info.name);
    }
    Modelled clone;
    clone.path = path;
    clone.base = family->latest;
    clone.active = m.active;
    open_image(&clone);
    family->images.push_back(std::move(clone));
  } else if (dice < 915 && size < 60 * block_size) {
    m.active.resize(size + 4096 * (1 + family->below(40)));
    MUST(m.image->resize(m.active.size()));
  } else if (dice < 922) {
    shrink(family, &m);
  } else if (dice < 930 && !m.snapshots.empty()) {
    rename_some(family, &m, block_size);
  } else if (dice < 940) {
    reopen(family, &m);
  } else if (dice < 970) {
    compare_all(m);
  } else {
    // Readers in between, like those of other processes.
    auto reader = MUST(Image::open(m.path, {}));
    compare(*reader, nullptr, m.active, m.path + " (read-only)");
    compare_map(*reader, nullptr, m.active, m.path + " (read-only)");
    if (dice >= 990) {
      fill_all(family);
      family->second_reader->compare(m.path, m.active, m.snapshots);
    }
  }
  if (family->lazy && family->below(4) == 0) give_some_back(family);
  if (family->below(8) == 0) read_on(family, &family->images[family->below(family->images.size())]);
}

void run(uint64_t seed, SecondReader* second_reader, uint32_t block_size, uint64_t size, int steps,
         bool many_deletions = false, bool lazy = false) {
  Family family(seed, second_reader);
  family.many_deletions = many_deletions;
  family.lazy = lazy;
  fetch_remote = [&](const Error& error) {
    if (!error.remote) return false;
    for (Modelled& m : family.images) {
      if (m.uuid != error.remote->uuid) continue;
      fill(&family, &m, error.remote->layer, error.remote->block);
      return true;
    }
    return false;
  };
  Modelled first;
  first.path = family.directory / "first.pcow";
  CreateOptions options;
  options.size = size;
  options.block_size = block_size;
  MUST(create_image(first.path, options));
  first.active.resize(size);
  open_image(&first);
  if (lazy) make_lazy(&family, &first);
  family.images.push_back(std::move(first));
  for (int i = 0; i < steps; i++) step(&family, block_size);
  for (const Modelled& modelled : family.images) compare_all(modelled);
  fill_all(&family);
  for (Modelled& modelled : family.images) MUST(modelled.image->close());
  for (const Modelled& modelled : family.images)
    second_reader->compare(modelled.path, modelled.active, modelled.snapshots);
}

}  // namespace

int main(int argc, char** argv) {
  const int steps = argc > 1 ? atoi(argv[1]) : effort(1000, 400, 100);
  const uint64_t seed = test_seed();
  SecondReader second_reader;
  for (const uint32_t block_size : {4096u, 16384u, 65536u, 262144u}) {
    run(seed + block_size, &second_reader, block_size,
        std::max<uint64_t>(65536, 12 * block_size + 4096), steps);
  }
  run(seed, &second_reader, 2097152, 9 * 1048576, steps / 6);
  run(seed + 1, &second_reader, 4096, 5 * 1048576, steps);  // three chunks
  run(seed + 2, &second_reader, 16384, 300000 / 4096 * 4096, steps, true);
  run(seed + 3, &second_reader, 65536, 12 * 65536 + 4096, steps / 2, false, true);
  run(seed + 4, &second_reader, 16384, 300000 / 4096 * 4096, steps / 2, true, true);
  return 0;
}
