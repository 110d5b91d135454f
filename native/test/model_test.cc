// Random operations on a small family of images, against plain memory: after any sequence every image, and every
// snapshot of it, equals the model. Images are reopened now and then, as after a clean end and as after a killed process.
// Between the chunks of a merge they are worked with, as a guest would that goes on, and sometimes the merge is cancelled.
#include <fcntl.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "check.h"

using namespace pcow;

namespace {

struct Modelled {
  std::string path;
  std::unique_ptr<Image> image;
  Bytes active;
  std::map<std::string, Bytes> snapshots;
  std::string base;  // "path@snapshot"
};

struct Family {
  explicit Family(uint64_t seed) : random(seed) {}
  std::mt19937_64 random;
  TemporaryDirectory directory;
  std::vector<Modelled> images;
  std::map<std::string, int> bases;  // "path@snapshot": how many images stand on it
  int names = 0;

  std::string latest;  // of the bases

  uint64_t below(uint64_t limit) { return random() % limit; }
  // An image that stood on one base (null: on none) stands on another ("": on none).
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
  modelled->image = MUST(Image::open(modelled->path, options));
}

void compare(const Image& image, const View* view, const Bytes& expected, const std::string& what) {
  Bytes found(expected.size() + 1);
  const size_t count = MUST(image.read(view, 0, found.data(), found.size()));
  CHECK(count == expected.size());
  if (memcmp(found.data(), expected.data(), count) == 0) return;
  for (size_t i = 0; i < count; i++) {
    if (found[i] == expected[i]) continue;
    fprintf(stderr, "%s differs at byte %zu: %u instead of %u\n", what.c_str(), i, found[i], expected[i]);
    exit(1);
  }
}

// Every byte is where the map says, and all of the layer is mapped.
void compare_map(const Image& image, const View* view, const Bytes& expected, const std::string& what) {
  uint64_t offset = 0;
  uint64_t end = 0;
  do {
    const ExtentBatch batch = MUST(image.map(view, offset, {}));
    CHECK(batch.size == expected.size());
    for (const MapExtent& extent : batch.extents) {
      CHECK(extent.offset == end && extent.length > 0);
      end += extent.length;
      CHECK(end <= expected.size());
      Bytes found(extent.length);
      if (extent.kind == ExtentKind::kData) {
        const int descriptor = open(batch.chain[extent.depth].path.c_str(), O_RDONLY | O_CLOEXEC);
        CHECK(descriptor >= 0);
        CHECK(pread(descriptor, found.data(), found.size(), static_cast<off_t>(extent.place)) ==
              static_cast<ssize_t>(found.size()));
        close(descriptor);
      }
      if (memcmp(found.data(), expected.data() + extent.offset, found.size()) == 0) continue;
      fprintf(stderr, "the map of %s is wrong at %llu\n", what.c_str(), static_cast<unsigned long long>(extent.offset));
      exit(1);
    }
    CHECK(batch.next > offset && (batch.next == expected.size() || batch.next % 4096 == 0));
    offset = batch.next;
  } while (offset < expected.size());
  CHECK(end == expected.size());
}

// Outside of the listed changes two layers are equal. Returns the bytes that are listed.
uint64_t compare_changes(const Image& image, const View* from, const Bytes& before, const View* to,
                         const Bytes& after) {
  Bytes patched = before;
  patched.resize(after.size());
  uint64_t offset = 0;
  uint64_t end = 0;
  uint64_t listed = 0;
  do {
    const ExtentBatch batch = MUST(image.changes(from, to, offset));
    CHECK(batch.size == after.size());
    for (const MapExtent& extent : batch.extents) {
      CHECK(extent.offset >= end && extent.length > 0);
      end = extent.offset + extent.length;
      CHECK(end <= after.size());
      listed += extent.length;
      if (extent.kind == ExtentKind::kData) {
        memcpy(patched.data() + extent.offset, after.data() + extent.offset, extent.length);
      } else {
        memset(patched.data() + extent.offset, 0, extent.length);
      }
    }
    offset = batch.next;
  } while (offset < after.size());
  CHECK(patched == after);
  return listed;
}

// The changes between neighbours in the list, both ways: over and over these are all sorts of pairs.
void compare_maps(const Modelled& modelled) {
  std::vector<std::pair<std::shared_ptr<View>, const Bytes*>> layers = {{nullptr, &modelled.active}};
  for (const auto& [name, bytes] : modelled.snapshots) layers.emplace_back(MUST(modelled.image->view(name)), &bytes);
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

// Few places in each chunk of an image that has several, so that operations meet.
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
  MUST(m->image->write(offset, data.data(), length));
  memcpy(m->active.data() + offset, data.data(), length);
}

void discard_some(Family* family, Modelled* m, uint32_t block_size) {
  const uint64_t offset = some_offset(family, m->active.size(), block_size);
  const uint64_t length = std::min(m->active.size() - offset, 1 + family->below(4 * block_size));
  MUST(m->image->discard(offset, length));
  memset(m->active.data() + offset, 0, length);
}

// Work on the image between two chunks of something that takes long; or an end of that, where it has begun.
Progress between_chunks(Family* family, Modelled* m, uint32_t block_size, bool cancel) {
  return [=](uint64_t done, uint64_t total) {
    for (uint64_t count = family->below(8); count; count--) {
      if (family->below(2)) {
        write_some(family, m, block_size);
      } else {
        discard_some(family, m, block_size);
      }
    }
    if (family->below(3) == 0) MUST(m->image->sync());
    compare(*m->image, nullptr, m->active, m->path + " in the middle of a change");
    return !cancel || done == 0 || done == total;
  };
}

void remove_some(Family* family, Modelled* m, uint32_t block_size) {
  const std::string name = some_snapshot(family, *m);
  if (family->bases[m->path + "@" + name]) return;
  const bool cancel = family->below(4) == 0;
  auto removed = m->image->remove(name, between_chunks(family, m, block_size, cancel));
  CHECK(removed || (cancel && removed.error().code == Code::kCancelled));
  m->snapshots.erase(name);
}

// Written zeros, for compact() to find.
void put_zeros(Family* family, Modelled* m, uint32_t block_size) {
  const uint64_t offset = family->below(m->active.size()) / 4096 * 4096;
  const uint64_t length = std::min<uint64_t>(m->active.size() - offset, 2 * block_size);
  const Bytes zeros(length);
  MUST(m->image->write(offset, zeros.data(), length));
  memset(m->active.data() + offset, 0, length);
}

void shrink(Family* family, Modelled* m) {
  const uint64_t size = m->active.size() - std::min(m->active.size() - 65536, 4096 * family->below(60));
  auto shrunk = m->image->resize(size, true);
  if (shrunk) {
    m->active.resize(size);
  } else {
    // Not below what it stands on.
    CHECK(shrunk.error().code == Code::kInvalid && !(m->snapshots.empty() && m->base.empty()));
  }
}

// To a random snapshot of the family, or to none.
void rebase(Family* family, Modelled* m, uint32_t block_size) {
  const bool cancel = family->below(4) == 0;
  const Progress progress = between_chunks(family, m, block_size, cancel);
  const Modelled& target = family->images[family->below(family->images.size())];
  if (family->below(3) == 0 || target.snapshots.empty()) {
    auto flattened = m->image->rebase({}, false, progress);
    if (flattened) return family->stand(&m->base, "");
    CHECK(cancel && flattened.error().code == Code::kCancelled);
    return;
  }
  BaseSpec base;
  base.path = target.path;
  base.snapshot = some_snapshot(family, target);
  auto outcome = m->image->rebase(base, true, progress);
  if (outcome) return family->stand(&m->base, base.path + "@" + base.snapshot);
  // A circle, or a base that is larger.
  CHECK(outcome.error().code == Code::kBaseLoop || outcome.error().code == Code::kInvalid ||
        (cancel && outcome.error().code == Code::kCancelled));
}

void commit(Family* family, Modelled* m, uint32_t block_size) {
  if (m->base.empty()) return;
  const std::string path = m->base.substr(0, m->base.find('@'));
  for (Modelled& base : family->images) {
    if (base.path != path) continue;
    const std::string name = "c" + std::to_string(family->names++);
    // What is frozen when it begins; writes go on.
    const Bytes frozen = m->active;
    const bool cancel = family->below(4) == 0;
    auto followed = m->image->commit_into(base.image.get(), name, false, between_chunks(family, m, block_size, cancel));
    if (!m->snapshots.empty()) {
      CHECK(!followed && followed.error().code == Code::kInUse);
      return;
    }
    if (cancel && !followed) {
      CHECK(followed.error().code == Code::kCancelled);
      return;
    }
    const bool along = MUST(std::move(followed));
    base.snapshots[name] = frozen;
    if (along) base.active = frozen;
    return family->stand(&m->base, path + "@" + name);
  }
  CHECK(false);
}

void step(Family* family, uint32_t block_size) {
  Modelled& m = family->images[family->below(family->images.size())];
  const uint64_t size = m.active.size();
  const uint64_t dice = family->below(1000);
  if (dice < 490) {
    write_some(family, &m, block_size);
  } else if (dice < 520) {
    put_zeros(family, &m, block_size);
  } else if (dice < 535) {
    const bool cancel = family->below(4) == 0;
    auto compacted = m.image->compact(between_chunks(family, &m, block_size, cancel));
    CHECK(compacted || (cancel && compacted.error().code == Code::kCancelled));
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
  } else if (dice < 940) {
    if (family->below(2)) MUST(m.image->close());
    m.image.reset();
    open_image(&m);
    compare_all(m);
  } else if (dice < 970) {
    compare_all(m);
  } else {
    // A reader in between, as another process would have one.
    auto reader = MUST(Image::open(m.path, {}));
    compare(*reader, nullptr, m.active, m.path + " (read-only)");
    compare_map(*reader, nullptr, m.active, m.path + " (read-only)");
  }
}

void run(uint64_t seed, uint32_t block_size, uint64_t size, int steps) {
  Family family(seed);
  Modelled first;
  first.path = family.directory / "first.pcow";
  CreateOptions options;
  options.size = size;
  options.block_size = block_size;
  MUST(create_image(first.path, options));
  first.active.resize(size);
  open_image(&first);
  family.images.push_back(std::move(first));
  for (int i = 0; i < steps; i++) step(&family, block_size);
  for (const Modelled& modelled : family.images) compare_all(modelled);
  for (Modelled& modelled : family.images) MUST(modelled.image->close());
}

}  // namespace

// The thread sanitizer makes this many times slower, and finds nothing in a program of one thread.
#if defined(__SANITIZE_THREAD__)
constexpr int kSteps = 60;
#else
constexpr int kSteps = 1500;
#endif

int main(int argc, char** argv) {
  const int steps = argc > 1 ? atoi(argv[1]) : kSteps;
  const uint64_t seed = test_seed();
  for (const uint32_t block_size : {4096u, 16384u, 65536u, 262144u}) {
    run(seed + block_size, block_size, std::max<uint64_t>(65536, 12 * block_size + 4096), steps);
  }
  run(seed, 2097152, 9 * 1048576, steps / 6);
  run(seed + 1, 4096, 5 * 1048576, steps);  // three chunks
  return 0;
}
