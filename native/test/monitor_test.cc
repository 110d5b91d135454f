// A session in this process: threads write through the mapping, in causal order, over a base and
// over holes, while snapshots freeze it. No write may be lost, no read may return zeros, every
// snapshot is a consistent cut, and the mapping, the image and the model agree. All of this with
// and without a clean store, from which the session maps what the base holds.
//
//   monitor_test [SNAPSHOTS]
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/disk/file.h"
#include "local_store.h"
#include "monitor/session.h"

using namespace pcow;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

enum class Store { kNone, kShared };

struct Monitored {
  std::unique_ptr<Session> session;
  char* memory;
  size_t length;
  std::unique_ptr<LocalStore> store;  // ends first
};

// A store of one segment, which is enough for every base here.
std::unique_ptr<LocalStore> serve(Session* session, Store store) {
  if (store == Store::kNone || !MUST(FaultDescriptor::open())->can_share()) return nullptr;
  const std::vector<LayerRef> chain = MUST(session->image().chain(nullptr));
  auto made = std::make_unique<LocalStore>(segment::kContent);
  made->serve(session, chain.back().path, chain.back().layer);
  return made;
}

Monitored monitor(const std::string& path, const Session::Limits& limits, Store store,
                  FileObserver* observer = nullptr) {
  OpenOptions options;
  options.write = true;
  options.observer = observer;
  auto image = MUST(Image::open(path, options));
  const size_t length = image->size();
  auto session = MUST(Session::start(std::move(image), limits));
  void* memory = MUST(session->map(length, PROT_READ | PROT_WRITE, 0));
  auto served = serve(session.get(), store);
  return {std::move(session), static_cast<char*>(memory), length, std::move(served)};
}

void finish(Monitored& monitored) {
  monitored.store.reset();
  MUST(monitored.session->unmap(monitored.memory, monitored.length));
  CHECK(monitored.session->is_idle());
  monitored.session->close();
}

void snapshot(Session* session, const std::string& name) {
  MUST(session->prepare(name, false));
  MUST(session->cut());
  MUST(session->commit());
  MUST(session->finish());
}

// An image of `size` bytes on a base in which every other page of 4 KiB holds its own number.
std::string make_over_base(const TemporaryDirectory& directory, uint64_t size,
                           uint32_t block_size) {
  CreateOptions options;
  options.size = size;
  options.block_size = block_size;
  MUST(create_image(directory / "base.pcow", options));
  OpenOptions opening;
  opening.write = true;
  auto base = MUST(Image::open(directory / "base.pcow", opening));
  for (uint64_t page = 0; page < size / 4096; page += 2) {
    std::vector<uint64_t> content(512, page + 1);
    MUST(base->write(page * 4096, content.data(), 4096));
  }
  MUST(base->snapshot("base"));
  MUST(base->close());
  CreateOptions clone;
  clone.has_base = true;
  clone.base.path = directory / "base.pcow";
  clone.base.snapshot = "base";
  MUST(create_image(directory / "vm.pcow", clone));
  return directory / "vm.pcow";
}

// Threads write the number of the round to a cell of their own in every block, in ascending order:
// at any cut, block i + 1 holds the same number as block i, or one less.
void cuts(uint32_t block_size, int snapshots, const Session::Limits& limits, Store store) {
  constexpr int kThreads = 3;
  constexpr uint64_t kStride = 36864;
  const TemporaryDirectory directory;
  Monitored m = monitor(make_over_base(directory, 24 * kMiB, block_size), limits, store);
  const size_t cells = m.length / kStride;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; id++) {
    threads.emplace_back([&, id] {
      for (uint64_t round = 1; !stop; round++) {
        for (size_t i = 0; i < cells; i++) {
          auto* cell = reinterpret_cast<uint64_t*>(m.memory + i * kStride + 64 +
                                                   static_cast<size_t>(id) * 64);
          const std::atomic_ref<uint64_t> value(*cell);
          const uint64_t page = (i * kStride + 64) / 4096;
          const uint64_t first = page % 2 ? 0 : page + 1;
          if (value.load() != (round == 1 ? first : round + 1'000'000 - 1)) wrong++;
          value.store(round + 1'000'000);
        }
        // Leaves the processors to the faults, because rounds after a snapshot take long.
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
  }
  for (int number = 0; number < snapshots; number++) {
    snapshot(m.session.get(), "s" + std::to_string(number));
    if (number % 4 == 3) MUST(m.session->image().remove("s" + std::to_string(number - 2), nullptr));
    if (number % 3 == 0) MUST(m.session->sync());
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);

  for (const SnapshotInfo& info : MUST(m.session->image().snapshots(false))) {
    auto view = MUST(m.session->image().view(info.name));
    for (int id = 0; id < kThreads; id++) {
      uint64_t before = 0;
      uint64_t first = 0;
      for (size_t i = 0; i < cells; i++) {
        uint64_t value;
        const uint64_t at = i * kStride + 64 + static_cast<uint64_t>(id) * 64;
        CHECK(MUST(m.session->image().read(view.get(), at, &value, 8)) == 8);
        if (value < 1'000'000) value = 1'000'000;  // not written yet
        if (i == 0) first = value;
        CHECK(i == 0 || value <= before);
        CHECK(first - value <= 1);
        before = value;
      }
    }
  }
  std::vector<char> content(m.length);
  CHECK(MUST(m.session->image().read(nullptr, 0, content.data(), m.length)) == m.length);
  CHECK(memcmp(content.data(), m.memory, m.length) == 0);
  const Statistics& statistics = m.session->statistics();
  printf("block %u: %s\n", block_size, statistics.json().c_str());
  CHECK(statistics.clean_bytes <= limits.clean_cache + 65536 * 2);
  finish(m);
}

// Random stores, loads, snapshots, deletions and syncs through two mappings of one image, compared
// with plain memory. Its store ends, and another one begins, as of the next mount.
void model(uint64_t seed, uint32_t block_size, int steps, const Session::Limits& limits,
           Store store) {
  std::mt19937_64 random(seed);
  const TemporaryDirectory directory;
  const std::string path = make_over_base(directory, 8 * kMiB + 4096, block_size);
  Monitored m = monitor(path, limits, store);
  uint64_t shared = 0;
  const uint64_t second_offset = m.length / 8192 * 4096;
  const size_t half = m.length - second_offset;
  char* second =
      static_cast<char*>(MUST(m.session->map(half, PROT_READ | PROT_WRITE, second_offset)));
  std::vector<char> expected(m.length);
  CHECK(MUST(m.session->image().read(nullptr, 0, expected.data(), m.length)) == m.length);
  std::vector<std::pair<std::string, std::vector<char>>> snapshots;
  for (int step = 0; step < steps; step++) {
    const uint64_t offset = random() % m.length;
    const uint64_t length = std::min<uint64_t>(m.length - offset, 1 + random() % 9000);
    const bool through_second =
        offset >= second_offset && offset + length <= second_offset + half && random() % 2;
    char* at = through_second ? second + (offset - second_offset) : m.memory + offset;
    const auto dice = random() % 100;
    if (dice < 45) {
      for (uint64_t i = 0; i < length; i++)
        at[i] = expected[offset + i] = static_cast<char>(random());
    } else if (dice < 85) {
      CHECK(memcmp(at, expected.data() + offset, length) == 0);
    } else if (dice < 89) {
      MUST(m.session->sync());
    } else if (dice < 92) {
      MUST(m.session->discard(offset, length));
      memset(expected.data() + offset, 0, length);
    } else if (dice < 96 && snapshots.size() < 6) {
      snapshots.emplace_back("s" + std::to_string(step), expected);
      snapshot(m.session.get(), snapshots.back().first);
    } else if (dice < 98 && !snapshots.empty()) {
      const size_t which = random() % snapshots.size();
      MUST(m.session->image().remove(snapshots[which].first, nullptr));
      snapshots.erase(snapshots.begin() + static_cast<ptrdiff_t>(which));
    } else if (dice == 98) {
      MUST(m.session->unmap(m.memory, m.length));
      m.memory = static_cast<char*>(MUST(m.session->map(m.length, PROT_READ | PROT_WRITE, 0)));
    } else if (dice == 99) {
      shared += m.session->statistics().shared_bytes;
      m.store.reset();
      if (random() % 4) m.store = serve(m.session.get(), store);
    }
  }
  printf("block %u: %llu bytes were shared\n", block_size, static_cast<unsigned long long>(shared));
  CHECK(memcmp(m.memory, expected.data(), m.length) == 0);
  for (const auto& [name, content] : snapshots) {
    std::vector<char> found(m.length);
    auto view = MUST(m.session->image().view(name));
    CHECK(MUST(m.session->image().read(view.get(), 0, found.data(), m.length)) == m.length);
    CHECK(found == content);
  }
  MUST(m.session->unmap(second, half));
  finish(m);
  auto reader = MUST(Image::open(path, {}));
  std::vector<char> found(m.length);
  CHECK(MUST(reader->read(nullptr, 0, found.data(), m.length)) == m.length);
  CHECK(found == expected);
}

void must_have_promoted(const Monitored& m, uint64_t budget) {
  std::ifstream maps("/proc/self/maps");
  size_t lines = 0;
  for (std::string line; std::getline(maps, line);) lines++;
  const uint64_t promotions = m.session->statistics().promotions.load();
  printf("%zu mappings, %llu promotions\n", lines, static_cast<unsigned long long>(promotions));
  CHECK(promotions > 0);
  CHECK(lines < budget + 500);  // the rest are the program's own
}

// One byte in every block over a base, in random order: without promotion this needs more mappings
// than the budget.
void mapping_budget(Store store) {
  const TemporaryDirectory directory;
  // Blocks in random order make several hundred pieces before they join.
  constexpr uint64_t kBudget = 100;
  Monitored m = monitor(make_over_base(directory, 16 * kMiB, 16384), {16 * kMiB, kBudget}, store);
  std::vector<uint64_t> blocks(m.length / 65536);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(1));
  for (const uint64_t block : blocks) m.memory[block * 65536 + 5000] = 'x';
  must_have_promoted(m, kBudget);
  for (const uint64_t block : blocks) {
    CHECK(m.memory[block * 65536 + 5000] == 'x');
    uint64_t number;
    memcpy(&number, m.memory + block * 65536 + 8192, 8);
    CHECK(number == block * 16 + 3);
  }
  finish(m);
}

// The same after snapshots have come and gone, whose blocks are all over the file.
void mapping_budget_after_snapshots(Store store) {
  const TemporaryDirectory directory;
  constexpr uint64_t kBudget = 100;
  constexpr int kKept = 5;
  Monitored m = monitor(make_over_base(directory, 16 * kMiB, 16384), {16 * kMiB, kBudget}, store);
  std::mt19937_64 random(1);
  std::vector<char> expected(m.length);
  CHECK(MUST(m.session->image().read(nullptr, 0, expected.data(), m.length)) == m.length);
  const int snapshots = effort(40, 40, 8);
  for (int number = 0; number < snapshots; number++) {
    for (int i = 0; i < 300; i++) {
      const uint64_t at = random() % m.length;
      m.memory[at] = expected[at] = static_cast<char>(number);
    }
    if (number % 4 == 1) CHECK(memcmp(m.memory, expected.data(), m.length) == 0);
    must_have_promoted(m, kBudget);
    if (number % 7 == 3) MUST(m.session->sync());
    snapshot(m.session.get(), "s" + std::to_string(number));
    if (number >= kKept)
      MUST(m.session->image().remove("s" + std::to_string(number - kKept), nullptr));
  }
  CHECK(memcmp(m.memory, expected.data(), m.length) == 0);
  finish(m);
}

// Holds the first sync of a part of the file that comes after arm(): that of a copy of a chunk.
class HeldSync : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t length,
             const void*) override {
    if (operation != FileOperation::kSync || length == kWholeFile || !armed_.exchange(false))
      return 0;
    reached_ = true;
    go_on_.acquire();
    return 0;
  }
  void arm(bool armed) { armed_ = armed; }
  bool is_reached() const { return reached_; }
  void go_on() {
    reached_ = false;
    go_on_.release();
  }

 private:
  std::atomic<bool> armed_{false};
  std::atomic<bool> reached_{false};
  std::binary_semaphore go_on_{0};
};

// While a chunk is copied and synced for a move, faults are served, stores go on, and syncs return.
// No store is lost.
void stores_during_a_move(Store store) {
  const TemporaryDirectory directory;
  constexpr uint64_t kBudget = 400;
  HeldSync held;
  Monitored m =
      monitor(make_over_base(directory, 16 * kMiB, 16384), {16 * kMiB, kBudget}, store, &held);
  const Statistics& statistics = m.session->statistics();
  std::mt19937_64 random(1);
  std::vector<char> expected(m.length);
  CHECK(MUST(m.session->image().read(nullptr, 0, expected.data(), m.length)) == m.length);
  char last = 0;
  const auto put = [&](uint64_t at) { m.memory[at] = expected[at] = ++last; };
  int moves = 0;
  for (int round = 0; moves < effort(6, 6, 2); round++) {
    CHECK(round < 100);
    snapshot(m.session.get(), "s" + std::to_string(round));
    if (round > 2) MUST(m.session->image().remove("s" + std::to_string(round - 2), nullptr));
    std::vector<uint64_t> places;
    held.arm(true);
    for (int i = 0; i < 600 && !held.is_reached(); i++) {
      put(places.emplace_back(random() % m.length));
      // A chunk is completed, or it is about to be copied.
      while (!held.is_reached() && statistics.mappings > kBudget) std::this_thread::yield();
    }
    held.arm(false);
    if (!held.is_reached()) continue;
    const uint64_t before = statistics.promotions;
    for (const uint64_t at : places) put(at);
    for (int i = 0; i < 10; i++) put(random() % m.length);
    CHECK(statistics.promotions == before);
    if (moves % 2) MUST(m.session->sync());
    if (moves % 3 == 2) MUST(m.session->discard(places.front() / 65536 * 65536, 65536));
    if (moves % 3 == 2) memset(&expected[places.front() / 65536 * 65536], 0, 65536);
    held.go_on();
    for (const uint64_t at : places) put(at);
    while (statistics.promotions == before) std::this_thread::yield();
    CHECK(memcmp(m.memory, expected.data(), m.length) == 0);
    moves++;
  }
  std::vector<char> content(m.length);
  CHECK(MUST(m.session->image().read(nullptr, 0, content.data(), m.length)) == m.length);
  CHECK(content == expected);
  finish(m);
}

sigjmp_buf bus_error;

// Whether the access raises SIGBUS.
template <typename Access>
bool raises(const Access& access) {
  struct sigaction catching = {};
  struct sigaction before = {};
  catching.sa_handler = [](int) { siglongjmp(bus_error, 1); };
  sigaction(SIGBUS, &catching, &before);
  const bool raised = sigsetjmp(bus_error, 1) != 0;
  if (!raised) access();
  sigaction(SIGBUS, &before, nullptr);
  return raised;
}

// Before Linux 6.6 a thread that accesses damaged data can only be made to wait, for ever.
bool kernel_can_poison() {
  const auto faults = MUST(FaultDescriptor::open());
  void* page = MUST(faults->reserve(4096, PROT_READ));
  const bool can = faults->poison(page, 4096);
  munmap(page, 4096);
  return can;
}

// A block of the base is damaged: reading and writing there raises SIGBUS, and nowhere else.
void damaged_base(uint32_t block_size, Store store) {
  const TemporaryDirectory directory;
  const std::string path = make_over_base(directory, 4 * kMiB, block_size);
  OpenOptions opening;
  opening.write = true;
  uint64_t place = 0;
  {
    auto base = MUST(Image::open(directory / "base.pcow", opening));
    MUST(base->add_checksums(nullptr));
    const auto view = MUST(base->view("base"));
    for (const MapExtent& extent : MUST(base->map(view.get(), 0, {})).extents)
      if (extent.kind == ExtentKind::kData && kMiB - extent.offset < extent.length)
        place = extent.file_offset + kMiB - extent.offset;
    MUST(base->close());
  }
  CHECK(place != 0);
  std::fstream(directory / "base.pcow", std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(place))
      .put('!');
  Monitored m = monitor(path, {kMiB, 30000}, store);
  // Not atomic: the thread sanitizer holds a lock of its own around an atomic access, and the
  // signal would leave it locked.
  auto* cells = reinterpret_cast<volatile uint64_t*>(m.memory);
  const auto cell = [&](uint64_t offset) -> volatile uint64_t& { return cells[offset / 8]; };
  CHECK(raises([&] { (void)(cell(kMiB) + 0); }));
  CHECK(raises([&] { cell(kMiB + 2048) = 1; }));
  const uint64_t next = kMiB + block_size;
  CHECK(!raises([&] { CHECK(cell(next) == (next / 4096 % 2 ? 0 : next / 4096 + 1)); }));
  CHECK(!raises([&] { cell(kMiB - 8) = 7; }));
  CHECK(cell(kMiB - 8) == 7);
  snapshot(m.session.get(), "after");
  CHECK(raises([&] { cell(kMiB) = 1; }));
  CHECK(!raises([&] { cell(next) = 5; }));
  finish(m);
}

// A sequential reader gets more at a time, within the budget, and the right bytes, also around a
// page that is the image's own.
void reading_on(uint32_t block_size, uint64_t budget) {
  const TemporaryDirectory directory;
  Monitored m =
      monitor(make_over_base(directory, 16 * kMiB, block_size), {budget, 30000}, Store::kNone);
  auto* pages = reinterpret_cast<uint64_t*>(m.memory);
  const uint64_t own = 5 * kMiB / 4096 + 3;
  pages[own * 512] = 5;
  for (uint64_t page = 0; page < m.length / 4096; page++)
    CHECK(pages[page * 512] == (page == own ? 5 : page % 2 ? 0 : page + 1));
  const Statistics& statistics = m.session->statistics();
  const uint64_t units = m.length / std::min<uint64_t>(block_size, 65536);
  const uint64_t faults = statistics.faults[static_cast<size_t>(FaultKind::kCleanCopy)].count();
  CHECK(budget < kMiB ? faults >= units / 2 : faults < units / 4);
  CHECK(statistics.clean_bytes <= budget + 65536);
  finish(m);
}

}  // namespace

int main(int argc, char** argv) {
  const int snapshots = argc > 1 ? atoi(argv[1]) : effort(30, 30, 10);
  const uint64_t seed = test_seed();
  const int steps = effort(1500, 1500, 300);
  const bool at_length = effort(1, 1, 0);
  for (const Store store : {Store::kNone, Store::kShared}) {
    const bool all = store == Store::kNone || at_length;
    cuts(65536, snapshots, {512 * 1024, 30000}, store);
    if (all) {
      cuts(4096, snapshots, {64 * kMiB, 30000}, store);
      cuts(2 * kMiB, snapshots, {64 * kMiB, 300}, store);
      cuts(65536, snapshots, {512 * 1024, 30000, true}, store);
      cuts(4096, snapshots, {512 * 1024, 50}, store);
    }
    for (const uint32_t block_size : {4096u, 65536u, 524288u})
      if (all || block_size == 65536)
        model(seed + block_size, block_size, steps, {kMiB, 30000}, store);
    for (const uint32_t block_size : {4096u, 65536u})
      if (all || block_size == 4096) {
        model(seed + block_size, block_size, steps, {kMiB, 30000, true}, store);
        // So few mappings that chunks are completed and moved all the time.
        model(seed + block_size, block_size, steps, {kMiB, 40}, store);
      }
    mapping_budget(store);
    if (all) mapping_budget_after_snapshots(store);
    stores_during_a_move(store);
  }
  for (const uint32_t block_size : {4096u, 65536u})
    for (const uint64_t budget : {128 * uint64_t{1024}, 64 * kMiB}) reading_on(block_size, budget);
  if (kernel_can_poison()) {
    for (const uint32_t block_size : {4096u, 65536u})
      for (const Store store : {Store::kNone, Store::kShared}) damaged_base(block_size, store);
  } else {
    printf("damaged blocks were not touched: this kernel has no UFFDIO_POISON\n");
  }
  return 0;
}
