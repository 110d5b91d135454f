// Sessions of one base share its memory: what each reads, what each writes, what the store keeps,
// and what can be given back.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>

#include "check.h"
#include "local_store.h"
#include "monitor/session.h"

using namespace pcow;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr unsigned kHungSeconds = 300;

// Waits for a condition that other threads bring about. alarm(2) ends a test that waits in vain.
void until(const std::function<bool()>& condition) {
  while (!condition()) usleep(1000);
}

// A base in which each page but every third begins with its number + 1; the third ones are holes.
struct Base {
  const TemporaryDirectory& directory;
  std::string path = directory / "base.pcow";
  uint64_t size;
  uint64_t layer = 0;

  Base(const TemporaryDirectory& in, uint64_t bytes, uint32_t block_size)
      : directory(in), size(bytes) {
    CreateOptions options;
    options.size = size;
    options.block_size = block_size;
    MUST(create_image(path, options));
    OpenOptions opening;
    opening.write = true;
    auto image = MUST(Image::open(path, opening));
    std::vector<uint64_t> page(512);
    for (uint64_t number = 0; number < size / 4096; number++) {
      page[0] = value(number);
      if (page[0]) MUST(image->write(number * 4096, page.data(), 4096));
    }
    MUST(image->snapshot("base"));
    layer = MUST(image->layer_id("base"));
    MUST(image->close());
  }
  static uint64_t value(uint64_t page) { return page % 3 == 2 ? 0 : page + 1; }

  std::string clone(const std::string& name) const {
    CreateOptions options;
    options.has_base = true;
    options.base = {path, "base", 0};
    MUST(create_image(directory / name, options));
    return directory / name;
  }
};

struct Guest {
  std::unique_ptr<Session> session;
  size_t length;
  uint64_t* pages;

  // `layer`: of a snapshot; 0: the image's own.
  explicit Guest(const std::string& path, bool write = true, uint64_t layer = 0) {
    OpenOptions options;
    options.write = write;
    session =
        MUST(Session::start(MUST(Image::open(path, options)), {256 * kMiB, 30000, false}, layer));
    length = session->size();
    pages = static_cast<uint64_t*>(MUST(session->map(length, protection(), 0)));
  }
  int protection() const { return session->writable() ? PROT_READ | PROT_WRITE : PROT_READ; }
  volatile uint64_t& page(uint64_t number) const { return pages[number * 512]; }
  uint64_t shared() const { return session->statistics().shared_bytes; }
  void read_all() const {
    for (uint64_t number = 0; number < length / 4096; number++)
      CHECK(page(number) == Base::value(number));
  }
  uint64_t in_image(uint64_t number) const {
    uint64_t found = 0;
    MUST(session->image().read(nullptr, number * 4096, &found, sizeof found));
    return found;
  }
  void end() {
    MUST(session->unmap(pages, length));
    CHECK(shared() == 0 && session->statistics().own_bytes == 0);
    session->close();
    session.reset();
  }
};

void snapshot(Session* session, const std::string& name) {
  MUST(session->prepare(name, false));
  MUST(session->cut());
  MUST(session->commit());
  MUST(session->finish());
}

int store_mappings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  // The store's own mappings are shared, the sessions' are private.
  for (std::string line; std::getline(maps, line);)
    if (line.find("pcow-clean-store") != std::string::npos &&
        line.find("rw-p") != std::string::npos)
      count++;
  return count;
}

void two_guests(uint32_t block_size) {
  const TemporaryDirectory directory;
  const Base base(directory, 80 * kMiB, block_size);
  Guest a(base.clone("a.pcow"));
  Guest b(base.clone("b.pcow"));
  {
    LocalStore store(256 * kMiB);
    store.serve(a.session.get(), base.path, base.layer);
    store.serve(b.session.get(), base.path, base.layer);
    a.read_all();
    b.read_all();
    // Copies that were made while the store was being filled are replaced.
    until([&] { return a.shared() == base.size && b.shared() == base.size; });
    CHECK(a.session->statistics().clean_bytes == 0 && b.session->statistics().clean_bytes == 0);
    CHECK(store.figures().bytes == base.size);
    CHECK(store_mappings() == 2 * 2);  // two segments each: neighbours are one mapping
    a.read_all();
    b.read_all();

    // A store is the writer's own.
    CHECK(a.session->statistics().own_bytes == 0);
    a.page(5) = 1000;
    const uint64_t own = a.session->statistics().own_bytes;
    CHECK(own > 0 && own + a.shared() == base.size);
    CHECK(a.page(5) == 1000 && a.in_image(5) == 1000);
    CHECK(b.page(5) == Base::value(5) && b.in_image(5) == Base::value(5));
    // So is one by the kernel, and one after the pages were dropped.
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    const uint64_t sent = 2000;
    CHECK(write(pipes[1], &sent, 8) == 8 && read(pipes[0], &a.pages[7 * 512], 8) == 8);
    CHECK(a.in_image(7) == 2000 && b.page(7) == Base::value(7));
    CHECK(madvise(&a.pages[512 * 512], kMiB, MADV_DONTNEED) == 0);
    CHECK(a.page(513) == Base::value(513));
    a.page(513) = 3000;
    a.page(600) = 3001;
    CHECK(a.in_image(513) == 3000 && a.in_image(600) == 3001 && b.page(513) == Base::value(513));

    // A snapshot has what was written; the rest of the memory can be shared after it as well.
    snapshot(a.session.get(), "s");
    CHECK(a.page(5) == 1000 && a.page(7) == 2000 && a.page(513) == 3000);
    a.page(5) = 1001;
    CHECK(b.page(5) == Base::value(5));
    uint64_t frozen = 0;
    MUST(a.session->image().read(MUST(a.session->image().view("s")).get(), 5 * 4096, &frozen, 8));
    CHECK(frozen == 1000);
    for (uint64_t number = 1024; number < base.size / 4096; number++)
      CHECK(a.page(number) == Base::value(number));
    CHECK(a.page(7) == 2000 && a.page(600) == 3001);
    // What the image's own snapshot holds is never shown from the store.
    snapshot(a.session.get(), "t");
    for (uint64_t number = 0; number < 1024; number++) {
      const bool own = number == 5 || number == 7 || number == 513 || number == 600;
      CHECK(own || a.page(number) == Base::value(number));
    }
    CHECK(a.page(5) == 1001 && a.page(7) == 2000 && a.page(513) == 3000 && a.page(600) == 3001);

    // Zeros of the image's own hide the base.
    MUST(a.session->discard(10 * 4096, 2 * block_size));
    for (uint64_t number = 10; number < 10 + 2 * block_size / 4096; number++)
      CHECK(a.page(number) == 0);
    CHECK(b.page(10) == Base::value(10));
    close(pipes[0]);
    close(pipes[1]);
  }
  a.end();
  b.end();
}

// A store through one mapping of an image shows in another one, which has shared memory there.
void two_mappings(uint32_t block_size) {
  const TemporaryDirectory directory;
  const Base base(directory, 8 * kMiB, block_size);
  Guest guest(base.clone("a.pcow"));
  auto* other = static_cast<volatile uint64_t*>(
      MUST(guest.session->map(4 * kMiB, PROT_READ | PROT_WRITE, 4 * kMiB)));
  const uint64_t first = 4 * kMiB / 4096;
  {
    LocalStore store(256 * kMiB);
    store.serve(guest.session.get(), base.path, base.layer);
    guest.read_all();
    for (uint64_t number = 0; number < first; number++)
      CHECK(other[number * 512] == Base::value(first + number));
    until([&] { return guest.shared() == 12 * kMiB; });
    for (uint64_t number = 0; number < first; number += 37) {
      guest.page(first + number) = 5000 + number;
      CHECK(other[number * 512] == 5000 + number);
      other[number * 512 + 1] = 6000 + number;
      CHECK(guest.pages[(first + number) * 512 + 1] == 6000 + number);
    }
    for (uint64_t number = 0; number < first; number++)
      CHECK(other[number * 512] == (number % 37 ? Base::value(first + number) : 5000 + number));
  }
  MUST(guest.session->unmap(const_cast<uint64_t*>(other), 4 * kMiB));
  guest.end();
}

// What the image's own snapshots hold is read without the sharing thread, which would map the whole
// slice for nothing, while the reader waits.
void own_snapshots() {
  const TemporaryDirectory directory;
  const Base base(directory, 8 * kMiB, 65536);
  Guest guest(base.clone("a.pcow"));
  {
    LocalStore store(256 * kMiB);
    store.serve(guest.session.get(), base.path, base.layer);
    guest.read_all();
    until([&] { return guest.shared() == base.size; });
    constexpr uint64_t kPages = segment::kSliceSize / 4096;
    for (uint64_t number = 5; number < base.size / 4096; number += kPages) guest.page(number) = 7;
    snapshot(guest.session.get(), "s");
    CHECK(guest.shared() == 0);
    const Histogram& by_sharing =
        guest.session->statistics().faults[static_cast<size_t>(FaultKind::kSharing)];
    const uint64_t before = by_sharing.count();
    for (uint64_t number = 5; number < base.size / 4096; number += kPages)
      CHECK(guest.page(number) == 7);
    CHECK(by_sharing.count() == before);
    CHECK(guest.page(4 * kPages - 1) == Base::value(4 * kPages - 1));
    until([&] { return guest.shared() > 0; });
    CHECK(guest.page(3 * kPages + 5) == 7);
  }
  guest.end();
}

// A process that only reads an image shares memory as well, but not where another process has
// written meanwhile: the first read of a page shows what the image has then.
void reader_beside_a_writer() {
  const TemporaryDirectory directory;
  const Base base(directory, 8 * kMiB, 65536);
  const std::string path = base.clone("a.pcow");
  OpenOptions options;
  options.write = true;
  auto writer = MUST(Image::open(path, options));
  Guest guest(path, false);
  {
    LocalStore store(64 * kMiB);
    store.serve(guest.session.get(), base.path, base.layer);
    CHECK(guest.page(0) == Base::value(0) && guest.page(16) == Base::value(16));
    until([&] { return store.figures().bytes >= 4 * kMiB; });
    constexpr uint64_t kWritten = 700;  // in a slice that is filled
    const uint64_t stored = 9000;
    MUST(writer->write(kWritten * 4096, &stored, sizeof stored));
    CHECK(guest.page(kWritten) == stored);
    for (uint64_t number = 0; number < guest.length / 4096; number++)
      CHECK(guest.page(number) == (number == kWritten ? stored : Base::value(number)));
    until([&] { return guest.shared() > 4 * kMiB; });
    CHECK(guest.page(kWritten) == stored && guest.page(kWritten + 1) == Base::value(kWritten + 1));
  }
  guest.end();
  MUST(writer->close());
}

// Processes that map a snapshot share all of it, whatever becomes of the image.
void mapped_snapshots() {
  const TemporaryDirectory directory;
  const Base base(directory, 8 * kMiB, 65536);
  const std::string path = base.clone("a.pcow");
  OpenOptions options;
  options.write = true;
  auto writer = MUST(Image::open(path, options));
  uint64_t stored = 1000;
  MUST(writer->write(5 * 4096, &stored, sizeof stored));
  MUST(writer->snapshot("s"));
  const uint64_t layer = MUST(writer->layer_id("s"));
  stored = 2000;
  MUST(writer->write(5 * 4096, &stored, sizeof stored));
  MUST(writer->resize(12 * kMiB));
  Guest a(path, false, layer);
  Guest b(path, false, layer);
  CHECK(a.length == base.size && a.session->is_snapshot());
  {
    LocalStore store(64 * kMiB);
    store.serve(a.session.get(), path, layer);
    store.serve(b.session.get(), path, layer);
    const auto check = [&](const Guest& guest) {
      for (uint64_t number = 0; number < guest.length / 4096; number++)
        CHECK(guest.page(number) == (number == 5 ? 1000 : Base::value(number)));
    };
    check(a);
    check(b);
    until([&] { return a.shared() == base.size && b.shared() == base.size; });
    check(a);
    check(b);
    CHECK(store.figures().bytes == base.size);
  }
  a.end();
  b.end();
  MUST(writer->close());
}

// The budget is kept, whoever has what; what nobody has any more makes room for others.
void budget() {
  const TemporaryDirectory directory;
  const Base base(directory, 160 * kMiB, 65536);
  const Base* const on = &base;
  Guest a(on->clone("a.pcow"));
  Guest b(on->clone("b.pcow"));
  constexpr uint64_t kBudget = 64 * kMiB;
  {
    LocalStore store(kBudget);
    store.serve(a.session.get(), base.path, base.layer);
    for (uint64_t number = 0; number < 64 * kMiB / 4096; number++)
      CHECK(a.page(number) == Base::value(number));
    until([&] { return a.shared() == kBudget; });
    // It is full, and all of it is in use.
    store.serve(b.session.get(), base.path, base.layer);
    b.read_all();
    a.read_all();
    until([&] { return store.figures().refused > 0; });
    CHECK(store.figures().bytes == kBudget && a.shared() == kBudget && b.shared() <= kBudget);
    // Both are gone: the first segment makes room for the next one.
    store.forget(1);
    store.forget(2);
    a.end();
    b.end();
    Guest c(on->clone("c.pcow"));
    store.serve(c.session.get(), base.path, base.layer);
    until([&] {
      for (uint64_t number = 64 * kMiB / 4096; number < 128 * kMiB / 4096; number++)
        CHECK(c.page(number) == Base::value(number));
      if (c.shared() > 0) return true;
      MUST(c.session->unmap(c.pages, c.length));
      c.pages = static_cast<uint64_t*>(MUST(c.session->map(c.length, c.protection(), 0)));
      return false;
    });
    CHECK(store.figures().bytes <= kBudget);
    c.read_all();
    store.forget(3);
    c.end();
  }
}

// Clients of a store, which get segments and have no session.
struct Clients {
  std::mutex lock;  // guards the next two
  std::vector<protocol::Descriptor> segments;
  uint64_t answers = 0;
  std::unique_ptr<CleanStore> store;  // ends first

  explicit Clients(uint64_t budget)
      : store(MUST(CleanStore::start(budget, [this](CleanStore::Answer answer) {
          const std::lock_guard guard(lock);
          answers++;
          if (answer.segment) segments.push_back(std::move(answer.segment));
        }))) {}
  void answered(uint64_t count) {
    until([&] {
      const std::lock_guard guard(lock);
      return answers == count;
    });
  }
};

uint64_t memory_of(const protocol::Descriptor& segment) {
  struct stat status;
  CHECK(fstat(segment.number(), &status) == 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// A client that reads all of its segments, also where they are not filled, and keeps a name of
// each, does not make the store larger than its budget.
void hostile_client() {
  const TemporaryDirectory directory;
  CreateOptions options;
  options.size = 4 * segment::kContent;
  MUST(create_image(directory / "base.pcow", options));
  uint64_t layer = 0;
  {
    OpenOptions opening;
    opening.write = true;
    auto image = MUST(Image::open(directory / "base.pcow", opening));
    MUST(image->snapshot("base"));
    layer = MUST(image->layer_id("base"));
    MUST(image->close());
  }
  constexpr uint64_t kBudget = 2 * segment::kContent;
  Clients clients(kBudget);
  CleanStore& store = *clients.store;
  store.open(1, {directory / "base.pcow", layer, ""});
  clients.answered(1);
  for (uint32_t number = 0; number < 4; number++) store.want(1, number * segment::kSlices, 1);
  clients.answered(5);
  CHECK(clients.segments.size() == 2 && store.figures().refused == 2);
  CHECK(store.figures().bytes == 2 * segment::kSliceSize && store.figures().segments == 2);
  std::vector<protocol::Descriptor> names;
  uint64_t memory = 0;
  for (const protocol::Descriptor& segment : clients.segments) {
    void* all = mmap(nullptr, segment::kContent, PROT_READ, MAP_PRIVATE, segment.number(), 0);
    CHECK(all != MAP_FAILED);
    for (uint64_t at = 0; at < segment::kContent; at += 4096)
      CHECK(static_cast<volatile const char*>(all)[at] == 0);
    CHECK(munmap(all, segment::kContent) == 0);
    memory += memory_of(segment);
    const std::string path = "/proc/self/fd/" + std::to_string(segment.number());
    names.emplace_back(open(path.c_str(), O_PATH | O_CLOEXEC));
    CHECK(static_cast<bool>(names.back()));
  }
  CHECK(memory >= kBudget && memory <= kBudget + 2 * 4096);
  // It ends, but for the names, which are as good as the memory: it can be opened again by them.
  store.forget(1);
  clients.segments.clear();
  store.open(2, {directory / "base.pcow", layer, ""});
  clients.answered(6);
  const auto wants_third = [&] {
    const uint64_t before = clients.answers;
    store.want(2, 2 * segment::kSlices, 1);
    clients.answered(before + 1);
    return !clients.segments.empty();
  };
  until([&] {
    CHECK(!wants_third());
    return store.figures().bytes == 0;  // both were dropped, which freed nothing
  });
  CHECK(store.figures().segments == 2);
  names.clear();
  until(wants_third);
  CHECK(store.figures().segments <= 2);
}

// An image that is larger than its base, and one whose base ends within a slice.
void larger_image() {
  const TemporaryDirectory directory;
  const Base base(directory, 3 * kMiB + 200 * 1024, 65536);
  const std::string path = base.clone("a.pcow");
  {
    OpenOptions options;
    options.write = true;
    auto image = MUST(Image::open(path, options));
    MUST(image->resize(6 * kMiB));
    MUST(image->close());
  }
  Guest guest(path);
  {
    LocalStore store(64 * kMiB);
    store.serve(guest.session.get(), base.path, base.layer);
    const auto check = [&] {
      for (uint64_t number = 0; number < guest.length / 4096; number++)
        CHECK(guest.page(number) == (number < base.size / 4096 ? Base::value(number) : 0));
    };
    check();
    until([&] { return guest.shared() == 7 * 512 * 1024; });
    check();
    guest.page(base.size / 4096) = 9;
    CHECK(guest.in_image(base.size / 4096) == 9);
  }
  guest.end();
}

// The protocol permits nothing to be asked of a mount before its offer, and the sharing thread asks
// whenever it finds copies to replace.
void between_mounts() {
  const TemporaryDirectory directory;
  const Base base(directory, 3 * kMiB, 65536);
  Guest guest(base.clone("a.pcow"));
  SharedBase& shared = guest.session->shared();
  const int event = eventfd(0, EFD_CLOEXEC);
  MUST(guest.session->offer_store(base.size, event));
  CHECK(shared.want(0, 4096));
  shared.withdraw();
  CHECK(!shared.want(0, 4096) && shared.take_wants().empty());
  MUST(guest.session->offer_store(base.size, event));
  CHECK(shared.want(0, 4096));
  guest.end();
  close(event);
}

// A mount that does not fill what it was asked for keeps no reader waiting.
void silent_mount() {
  const TemporaryDirectory directory;
  const Base base(directory, 24 * kMiB, 65536);
  Guest guest(base.clone("a.pcow"));
  SharedBase& shared = guest.session->shared();
  const int event = eventfd(0, EFD_CLOEXEC);
  MUST(guest.session->offer_store(base.size, event));
  CHECK(!shared.is_coming(0) && shared.want(0, 4096));
  CHECK(shared.is_coming(0) && !shared.is_coming(segment::kSliceSize));
  CHECK(!shared.await(0) && !shared.is_coming(0));  // not again soon
  guest.read_all();
  CHECK(shared.take_wants().size() > 1 && guest.shared() == 0);
  guest.end();
  close(event);
}

// The segment of an answer that comes after the process has ceased to wait for it is used; that of
// an answer that gets lost is given again.
void late_and_lost_answers() {
  const TemporaryDirectory directory;
  const Base base(directory, 3 * kMiB, 65536);
  Guest guest(base.clone("a.pcow"));
  Clients clients(64 * kMiB);
  clients.store->open(1, {base.path, base.layer, ""});
  clients.answered(1);
  clients.store->want(1, 0, 6);
  clients.answered(2);
  CHECK(clients.segments.size() == 1);
  clients.segments.clear();
  clients.store->want(1, 0, 6);
  clients.answered(3);
  CHECK(clients.segments.empty());
  clients.store->take_back(1, 0);
  clients.store->want(1, 0, 6);
  clients.answered(4);
  CHECK(clients.segments.size() == 1);

  const int event = eventfd(0, EFD_CLOEXEC);
  MUST(guest.session->offer_store(base.size, event));
  SharedBase& shared = guest.session->shared();
  guest.session->take_shared(segment::kSlices, protocol::Descriptor());  // nonsense
  guest.session->take_shared(0, std::move(clients.segments.front()));
  CHECK(shared.filled_to(0, base.size) == base.size);
  guest.read_all();
  until([&] { return guest.shared() == base.size; });
  guest.end();
  close(event);
}

// A base whose bytes are still in a registry, but for the slices with an odd number.
struct LazyBase {
  static constexpr uint64_t kBlock = 65536;
  static constexpr uint64_t kBlocks = segment::kSliceSize / kBlock;  // in a slice
  std::string path;
  std::unique_ptr<Image> image;
  uint64_t layer = 0;

  LazyBase(const TemporaryDirectory& directory, uint64_t slices) : path(directory / "lazy.pcow") {
    CreateOptions options;
    options.size = slices * segment::kSliceSize;
    MUST(create_image(path, options));
    OpenOptions opening;
    opening.write = true;
    image = MUST(Image::open(path, opening));
    MUST(image->set_source({{1}}));
    std::vector<RemoteEntry> remote;
    for (uint32_t block = 0; block < slices * kBlocks; block++) {
      if (is_remote(block))
        remote.push_back({block, 0xffff});
      else
        MUST(image->write(block * kBlock, content_of(block).data(), kBlock));
    }
    MUST(image->mark_remote(remote));
    MUST(image->snapshot("v1"));
    layer = MUST(image->layer_id("v1"));
  }
  static bool is_remote(uint64_t block) { return block / kBlocks % 2 == 0; }
  static uint64_t value(uint64_t page) { return page + 1; }
  static std::vector<uint64_t> content_of(uint64_t block) {
    std::vector<uint64_t> words(kBlock / 8);
    for (uint64_t page = 0; page < kBlock / 4096; page++)
      words[page * 512] = value(block * (kBlock / 4096) + page);
    return words;
  }
  void fill(uint64_t block) const {
    CHECK(MUST(image->fill(layer, block, content_of(block).data(), kBlock)) == 1);
  }
};

// A slice with remote bytes is refused. It holds up no other one, and a segment with nothing in it
// takes no room from one that has something.
void remote_slices() {
  const TemporaryDirectory directory;
  const LazyBase lazy(directory, 2 + segment::kSlices);  // two segments
  Clients clients(segment::kContent);
  CleanStore& store = *clients.store;
  store.open(1, {lazy.path, lazy.layer, ""});
  clients.answered(1);
  store.want(1, 0, 4);
  clients.answered(2);
  CHECK(clients.segments.size() == 1);
  CHECK(store.figures().bytes == 2 * segment::kSliceSize && store.figures().segments == 1);
  protocol::Descriptor segment = std::move(clients.segments.front());
  clients.segments.clear();

  // In a process: what is there is used, and the rest is asked for; what was refused is not.
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  MUST(create_image(directory / "top.pcow", on_top));
  Guest guest(directory / "top.pcow");
  const int event = eventfd(0, EFD_CLOEXEC);
  MUST(guest.session->offer_store(lazy.image->size(), event));
  SharedBase& shared = guest.session->shared();
  CHECK(shared.want(0, 4 * segment::kSliceSize) && shared.take_wants().size() == 1);
  guest.session->take_shared(0, std::move(segment));
  CHECK(shared.filled_to(0, 1) == 0 && !shared.want(0, 1));
  CHECK(shared.filled_to(segment::kSliceSize, segment::kContent) == 2 * segment::kSliceSize);
  CHECK(shared.want(4 * segment::kSliceSize, 6 * segment::kSliceSize));
  for (uint64_t page = 128; page < 256; page++) CHECK(guest.page(page) == LazyBase::value(page));
  until([&] { return guest.shared() == segment::kSliceSize; });

  // The other segment cannot be filled, and does not push the first one out, whoever has that.
  guest.end();
  close(event);
  store.want(1, segment::kSlices, 1);
  clients.answered(3);
  CHECK(store.figures().bytes == 2 * segment::kSliceSize && store.figures().segments == 1);
  CHECK(store.figures().refused == 0);
}

// Whatever arrives while the store is asked, a guest reads what the base holds, and in the end it
// shares all of it.
void filled_meanwhile() {
  const TemporaryDirectory directory;
  const LazyBase lazy(directory, 16);
  CreateOptions on_top;
  on_top.has_base = true;
  on_top.base = {lazy.path, "v1", 0};
  std::vector<Guest> guests;
  for (const char* name : {"a.pcow", "b.pcow"}) {
    MUST(create_image(directory / name, on_top));
    guests.emplace_back(directory / name);
  }
  const uint64_t size = lazy.image->size();
  {
    LocalStore local(64 * kMiB);
    std::vector<std::thread> readers;
    for (Guest& guest : guests) {
      local.serve(guest.session.get(), lazy.path, lazy.layer);
      readers.emplace_back([&guest] {
        for (uint64_t number = 0; number < guest.length / 4096; number++)
          CHECK(guest.page(number) == LazyBase::value(number));
      });
    }
    // From the end, so that slices fill up in the middle of what is asked for.
    for (uint64_t block = size / LazyBase::kBlock; block-- > 0;)
      if (LazyBase::is_remote(block)) lazy.fill(block);
    for (std::thread& reader : readers) reader.join();
    until([&] { return guests[0].shared() == size && guests[1].shared() == size; });
    for (const Guest& guest : guests)
      for (uint64_t number = 0; number < guest.length / 4096; number++)
        CHECK(guest.page(number) == LazyBase::value(number));
  }
  for (Guest& guest : guests) guest.end();
}

}  // namespace

int main() {
  alarm(kHungSeconds);
  if (!MUST(FaultDescriptor::open())->can_share()) {
    printf("this kernel cannot write-protect shared memory: nothing was tested\n");
    return 0;
  }
  larger_image();
  between_mounts();
  silent_mount();
  late_and_lost_answers();
  own_snapshots();
  reader_beside_a_writer();
  mapped_snapshots();
  budget();
  hostile_client();
  remote_slices();
  filled_meanwhile();
  for (const uint32_t block_size : {4096u, 65536u, 2097152u}) {
    two_guests(block_size);
    two_mappings(block_size);
  }
  return 0;
}
