// What opening refuses, what it ensures, and how it decides whether the last writer's page cache
// still exists. One file, because the three groups of tests are short and share the same helpers.
#include <fcntl.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <thread>

#include "check.h"
#include "engine/check/check.h"
#include "engine/disk/file.h"
#include "engine/format/crc32c.h"
#include "engine/format/superblock.h"
#include "engine/image/locking.h"
#include "engine/image/names.h"
#include "engine/image/page_cache.h"
#include "engine/image/recovery.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 65536;
constexpr size_t kVersionAt = 8;
constexpr size_t kIncompatibleAt = 16;
constexpr size_t kReadOnlyCompatibleAt = 104;

Result<std::unique_ptr<Image>> open_image(const std::string& path, bool write) {
  OpenOptions options;
  options.write = write;
  return Image::open(path, options);
}

void fill(Image* image, uint64_t offset, uint64_t length, char value) {
  const std::vector<char> bytes(length, value);
  MUST(image->write(offset, bytes.data(), length));
}

char byte_at(const Image& image, uint64_t offset) {
  char byte = '?';
  CHECK(MUST(image.read(nullptr, offset, &byte, 1)) == 1);
  return byte;
}

std::string sample(const TemporaryDirectory& directory, uint64_t size = 16 * kBlock) {
  const std::string path = directory / "image.pcow";
  CreateOptions options;
  options.size = size;
  std::filesystem::remove(path);
  MUST(create_image(path, options));
  auto image = MUST(open_image(path, true));
  fill(image.get(), 0, kBlock, '1');
  MUST(image->snapshot("s"));
  fill(image.get(), 0, kBlock, '2');
  MUST(image->close());
  return path;
}

Superblock newest_of(const std::string& path) {
  return MUST(read_superblock(*MUST(File::open(path, false, nullptr))));
}

// Writes a slot with the given fields and a right checksum.
using Slot = std::array<uint8_t, kPageSize>;
void put_slot(const std::string& path, uint64_t number, Slot slot) {
  memset(slot.data() + kSuperblockChecksumOffset, 0, 4);
  const uint32_t sum = crc32c(slot.data(), slot.size());
  memcpy(slot.data() + kSuperblockChecksumOffset, &sum, sizeof sum);
  MUST(MUST(File::open(path, true, nullptr))->write(number * kPageSize, slot.data(), slot.size()));
}

template <typename Value>
void put(Slot* slot, size_t at, Value value) {
  memcpy(slot->data() + at, &value, sizeof value);
}

void is_refused(const std::string& path, Code code) {
  const Bytes before = load(path);
  for (const bool write : {false, true}) FAILS(open_image(path, write), code);
  if (code == Code::kUnsupported)
    for (const bool repair : {false, true})
      FAILS(check_image(path, {.repair = repair}, nullptr), code);
  CHECK(load(path) == before);
}

// A newer program's superblock is never ignored in favour of the older one in the other slot.
void newer_programs() {
  const TemporaryDirectory directory;
  for (const bool newest : {true, false}) {
    const std::string path = sample(directory);
    Superblock superblock = newest_of(path);
    if (newest) superblock.generation++;
    if (!newest) superblock.generation--;
    Slot slot = superblock.encode();
    put(&slot, kVersionAt, uint32_t{2});
    // Everything else is where this program would not look for it.
    memset(slot.data() + 16, 0xa5, 4080);
    put_slot(path, superblock.generation & 1, slot);
    is_refused(path, Code::kUnsupported);
  }
  {
    const std::string path = sample(directory);
    Superblock superblock = newest_of(path);
    superblock.generation++;
    Slot slot = superblock.encode();
    put(&slot, kIncompatibleAt, uint64_t{1} << 40);
    put_slot(path, superblock.generation & 1, slot);
    is_refused(path, Code::kUnsupported);
    // The same in the older slot: the program that wrote the newer one no longer needs the feature.
    superblock.generation++;
    put_slot(path, superblock.generation & 1, superblock.encode());
    CHECK(MUST(check_image(path, {}, nullptr)).damages == 0);
    CHECK(byte_at(*MUST(open_image(path, false)), 0) == '2');
    CHECK(byte_at(*MUST(open_image(path, true)), 0) == '2');
  }
  {
    const std::string path = sample(directory);
    Superblock superblock = newest_of(path);
    superblock.generation++;
    Slot slot = superblock.encode();
    put(&slot, kReadOnlyCompatibleAt, uint64_t{1} << 40);
    put_slot(path, superblock.generation & 1, slot);
    CHECK(byte_at(*MUST(open_image(path, false)), 0) == '2');
    const Bytes before = load(path);
    FAILS(open_image(path, true), Code::kUnsupported);
    FAILS(check_image(path, {.repair = true}, nullptr), Code::kUnsupported);
    CHECK(load(path) == before);
  }
}

// Two slots with right checksums that cannot both belong to this image.
void contradictions() {
  const TemporaryDirectory directory;
  const auto with_next = [&](auto change, uint64_t steps, bool mendable = true) {
    const std::string path = sample(directory);
    Superblock superblock = newest_of(path);
    superblock.generation += steps;
    const uint64_t number = superblock.generation & 1;
    change(&superblock);
    put_slot(path, number, superblock.encode());
    is_refused(path, Code::kCorrupt);
    CHECK(MUST(check_image(path, {}, nullptr)).damages > 0);
    MUST(check_image(path, {.repair = true}, nullptr));
    if (mendable) MUST(open_image(path, true));
    if (!mendable) FAILS(open_image(path, true), Code::kCorrupt);
  };
  // A repair does not guess to which image the file belongs.
  with_next([](Superblock* superblock) { superblock->uuid[3] ^= 1; }, 1, false);
  // Equal generations: one of them is in the slot of the other.
  with_next([](Superblock* superblock) { superblock->generation--; }, 1);
  with_next([](Superblock* superblock) { superblock->generation += 1; }, 2);
  // Fields that no writer writes, in the older slot and in the newer one.
  for (const uint64_t steps : {1, 2}) {
    with_next([](Superblock* superblock) { superblock->block_shift = 30; }, steps);
    with_next([](Superblock* superblock) { superblock->generation |= uint64_t{1} << 63; }, steps);
  }
}

// Bytes that were appended to the file of an image, clean or not, never show in newly allocated
// blocks.
void appended_bytes() {
  const TemporaryDirectory directory;
  for (const uint64_t length : {uint64_t{1}, uint64_t{40960}, kBlock, 5 * kBlock + 4097}) {
    const std::string path = sample(directory);
    Bytes bytes = load(path);
    bytes.resize(bytes.size() + length, 'G');
    save(path, bytes);
    CHECK(MUST(check_image(path, {}, nullptr)).leaks > 0);
    auto image = MUST(open_image(path, true));
    FaultWork work;
    for (uint64_t offset = kBlock; offset < image->size(); offset += kBlock)
      MUST(image->make_writable(offset, {.ahead = kBlock}, &work));
    for (uint64_t offset = kBlock; offset < image->size(); offset += 512)
      CHECK(byte_at(*image, offset) == 0);
    CHECK(byte_at(*image, 0) == '2');
    MUST(image->close());
    const CheckReport report = MUST(check_image(path, {}, nullptr));
    CHECK(report.damages == 0 && report.leaks == 0);
  }
}

// --- bases ---

void make_on(const std::string& path, const std::string& base, const std::string& snapshot) {
  CreateOptions options;
  options.has_base = true;
  options.base.path = base;
  options.base.snapshot = snapshot;
  std::filesystem::remove(path);
  MUST(create_image(path, options));
}

void take(const std::string& path, char value, const std::string& name) {
  auto image = MUST(open_image(path, true));
  fill(image.get(), 0, kBlock, value);
  MUST(image->snapshot(name));
  MUST(image->close());
}

// As software that knew no identities in references.
void forget_identity(const std::string& path) {
  Superblock superblock = newest_of(path);
  superblock.base->identity = 0;
  for (int i = 0; i < 2; i++) {
    superblock.generation++;
    put_slot(path, superblock.generation & 1, superblock.encode());
  }
}

// A base that was restored from a copy, and frozen again: its uuid and the layer's id are the same
// as before.
void restored_bases() {
  const TemporaryDirectory directory;
  const std::string base = directory / "base.pcow", child = directory / "child.pcow";
  const auto begin_anew = [&] {
    CreateOptions options;
    options.size = 16 * kBlock;
    std::filesystem::remove(base);
    MUST(create_image(base, options));
  };
  const auto restore = [&](const Bytes& copy) {
    save(base, copy);
    take(base, 'X', "other");
  };
  const auto reference = [&] { return *newest_of(child).base; };

  begin_anew();
  const Bytes copy = load(base);
  take(base, 'A', "s");
  make_on(child, base, "s");
  CHECK(reference().identity != 0);
  CHECK(byte_at(*MUST(open_image(child, true)), 0) == 'A');
  take(child, 'c', "frozen");
  const uint64_t identity = MUST(MUST(open_image(child, false))->snapshot_info("frozen")).identity;

  const Bytes frozen = load(base);
  restore(copy);
  is_refused(child, Code::kBaseChanged);
  CHECK(MUST(check_image(child, {}, nullptr)).damages > 0);

  // The same base at another path: the content is the same, and so are the identities.
  const auto stand_on = [&](const std::string& path, const std::string& snapshot) {
    OpenOptions options;
    options.write = true;
    options.without_bases = true;
    auto image = MUST(Image::open(child, options));
    MUST(image->set_base({.path = path, .snapshot = snapshot}, true));
    MUST(image->close());
  };
  save(directory / "moved.pcow", frozen);
  stand_on(directory / "moved.pcow", "s");
  CHECK(MUST(MUST(open_image(child, false))->snapshot_info("frozen")).identity == identity);

  // Other content: the child's snapshots must not be taken for what they were.
  make_on(directory / "grandchild.pcow", child, "frozen");
  stand_on(base, "other");
  CHECK(reference().identity ==
        MUST(MUST(open_image(base, false))->snapshot_info("other")).identity);
  CHECK(MUST(MUST(open_image(child, false))->snapshot_info("frozen")).identity != identity);
  FAILS(open_image(directory / "grandchild.pcow", false), Code::kBaseChanged);

  // A reference without an identity is followed by the layer's id alone, as before.
  forget_identity(child);
  begin_anew();
  FAILS(open_image(child, false), Code::kBaseChanged);  // another uuid
  save(base, copy);
  take(base, 'A', "s");
  make_on(child, base, "s");
  forget_identity(child);
  restore(copy);
  CHECK(byte_at(*MUST(open_image(child, false)), 0) == 'X');
}

// A commit refers to the layer that it has made. A commit into a base that was restored is refused.
void commits() {
  const TemporaryDirectory directory;
  const std::string base = directory / "base.pcow", child = directory / "child.pcow";
  CreateOptions options;
  options.size = 16 * kBlock;
  MUST(create_image(base, options));
  const Bytes copy = load(base);
  take(base, 'A', "s");
  make_on(child, base, "s");
  {
    auto image = MUST(open_image(child, true));
    fill(image.get(), kBlock, kBlock, 'c');
    auto below = MUST(open_image(base, true));
    MUST(image->commit_into(below.get(), "t", false, nullptr));
    MUST(below->close());
    MUST(image->close());
  }
  CHECK(newest_of(child).base->identity ==
        MUST(MUST(open_image(base, false))->snapshot_info("t")).identity);
  CHECK(byte_at(*MUST(open_image(child, false)), kBlock) == 'c');
}

// --- the page cache of a writer that was killed ---

// Something is written and not synced, and then the process dies.
void write_and_die(const std::string& path) {
  fflush(nullptr);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    auto image = MUST(open_image(path, true));
    fill(image.get(), 4 * kBlock, kBlock, 'u');
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

void set_hint(const std::string& path, uint64_t hint) {
  CHECK(fcntl(MUST(File::open(path, true, nullptr))->descriptor(), F_SET_RW_HINT, &hint) == 0);
}

// Writes the newest superblock again, with a change.
void change_newest(const std::string& path, const std::function<void(Superblock*)>& change) {
  Superblock superblock = newest_of(path);
  change(&superblock);
  put_slot(path, superblock.generation & 1, superblock.encode());
}

char unsynced_byte(const std::string& path) {
  return byte_at(*MUST(open_image(path, false)), 4 * kBlock);
}

// Each proof alone suffices for counting what was not synced. Without any proof it does not count.
void proofs() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory);
  write_and_die(path);
  CHECK(unsynced_byte(path) == 'u');
  CHECK(!MUST(check_image(path, {}, nullptr)).crashed);
  const Superblock left = newest_of(path);
  CHECK(left.cache == cache_token_of(*MUST(File::open(path, false, nullptr))) &&
        left.cache.inode != 0);

  const auto reads = [&](uint64_t hint, const std::function<void(Superblock*)>& change) {
    set_hint(path, hint);
    change_newest(path, [&](Superblock* superblock) {
      *superblock = left;
      change(superblock);
    });
    const bool crashed = MUST(check_image(path, {}, nullptr)).crashed;
    const char byte = unsynced_byte(path);
    CHECK(crashed == (byte == 0));
    return byte;
  };
  const auto no_mount = [](Superblock* superblock) {
    superblock->cache.mount = superblock->cache.filesystem = 0;
  };
  const auto other_mount = [](Superblock* superblock) {
    superblock->cache.mount++;
    superblock->cache.filesystem++;
  };
  CHECK(reads(RWH_WRITE_LIFE_NONE, no_mount) == 'u');
  CHECK(reads(RWH_WRITE_LIFE_NONE, other_mount) == 'u');
  CHECK(reads(RWH_WRITE_LIFE_NOT_SET, no_mount) == 0);
  CHECK(reads(RWH_WRITE_LIFE_NOT_SET, other_mount) == 0);
  if (left.cache.mount)
    CHECK(reads(RWH_WRITE_LIFE_NOT_SET,
                [](Superblock* superblock) { superblock->cache.filesystem = 0; }) == 'u');
  if (left.cache.filesystem)
    CHECK(reads(RWH_WRITE_LIFE_NOT_SET,
                [](Superblock* superblock) { superblock->cache.mount = 0; }) == 'u');
  // Another file, another device, another boot, a boot id that could not be read.
  CHECK(reads(RWH_WRITE_LIFE_NONE, [](Superblock* superblock) { superblock->cache.inode++; }) == 0);
  CHECK(reads(RWH_WRITE_LIFE_NONE, [](Superblock* superblock) { superblock->cache.device++; }) ==
        0);
  CHECK(reads(RWH_WRITE_LIFE_NONE, [](Superblock* superblock) { superblock->boot[0] ^= 1; }) == 0);
  CHECK(reads(RWH_WRITE_LIFE_NONE, [](Superblock* superblock) { superblock->boot = {}; }) == 0);
  // Older software stores no token: only its boot id is known.
  CHECK(reads(RWH_WRITE_LIFE_NOT_SET, [](Superblock* superblock) { superblock->cache = {}; }) ==
        'u');

  // A copy of the file does not have the last writer's page cache.
  reads(RWH_WRITE_LIFE_NONE, [](Superblock*) {});
  save(directory / "copy.pcow", load(path));
  CHECK(unsynced_byte(directory / "copy.pcow") == 0);
  CHECK(byte_at(*MUST(open_image(directory / "copy.pcow", true)), 0) == '2');
}

class FailingSync : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    return operation == FileOperation::kSync && ++syncs_ == 2 ? EIO : 0;
  }

 private:
  int syncs_ = 0;  // the second one makes the open mark durable
};

// The inode is marked only after the token is on the disk: otherwise it would vouch for pages of a
// filesystem that is gone.
void token_before_mark() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory);
  set_hint(path, RWH_WRITE_LIFE_NOT_SET);
  FailingSync observer;
  OpenOptions options;
  options.write = true;
  options.observer = &observer;
  FAILS(Image::open(path, options), Code::kIo);
  uint64_t hint = 0;
  CHECK(fcntl(MUST(File::open(path, false, nullptr))->descriptor(), F_GET_RW_HINT, &hint) == 0);
  CHECK(hint == RWH_WRITE_LIFE_NOT_SET);
}

// The next process makes durable what a killed writer has left: then the host may boot again.
void recovers() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory);
  CHECK(MUST(recover_image(path)) == Recovery::kNothing);
  write_and_die(path);
  CHECK(MUST(recover_image(path)) == Recovery::kRecovered);
  CHECK(MUST(recover_image(path)) == Recovery::kNothing);
  CHECK(newest_of(path).clean);
  change_newest(path, [](Superblock* superblock) {
    superblock->clean = false;
    superblock->boot[0] ^= 1;
  });
  CHECK(unsynced_byte(path) == 'u');
  // After a host crash there is nothing to save; the next process that opens the image for writing
  // handles that.
  CHECK(MUST(recover_image(path)) == Recovery::kNothing);
  {
    auto writer = MUST(open_image(path, true));
    CHECK(MUST(recover_image(path)) == Recovery::kInUse);
  }
  // The base does not exist: what the image itself holds is saved nevertheless.
  const std::string child = directory / "child.pcow";
  make_on(child, path, "s");
  write_and_die(child);
  std::filesystem::rename(path, directory / "elsewhere.pcow");
  CHECK(MUST(recover_image(child)) == Recovery::kRecovered);
  CHECK(newest_of(child).clean);
  FAILS(recover_image(path), Code::kNotFound);
}

// A process that wants to write an image that is being recovered waits, and is not refused.
void waits_for_a_recovery() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory);
  auto recovering = MUST(File::open(path, true, nullptr));
  CHECK(MUST(try_lock_for_recovery(*recovering)) && MUST(recovering->try_lock()));
  CHECK(MUST(recover_image(path)) == Recovery::kInUse);
  std::atomic<bool> over{false};
  std::thread writer([&] {
    auto image = MUST(open_image(path, true));
    CHECK(over);
    MUST(image->close());
  });
  const timespec moment = {0, 20'000'000};
  nanosleep(&moment, nullptr);
  over = true;
  recovering = nullptr;
  writer.join();
}

// A process that has an image open while it is renamed (with a second name, as in
// src/engine/rename.ts) finds the base that it gets then.
void another_base_after_a_rename() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory), renamed = directory / "renamed.pcow",
                    base = directory / "base.pcow";
  const auto reader = MUST(open_image(path, false));
  CreateOptions options;
  options.size = 16 * kBlock;
  MUST(create_image(base, options));
  auto frozen = MUST(open_image(base, true));
  fill(frozen.get(), kBlock, kBlock, 'b');
  MUST(frozen->snapshot("s"));
  MUST(frozen->close());
  MUST(add_name(path, renamed));
  MUST(remove_name(path));
  auto writer = MUST(open_image(renamed, true));
  MUST(writer->set_base(BaseSpec{base, "s", 0}, true));
  CHECK(byte_at(*reader, 0) == '2' && byte_at(*reader, kBlock) == 'b');
  MUST(writer->close());
}

// Holds the writer's lock as a file server does for another host, until `work` has ended: in
// another process, and not as an open-file-description lock.
void locked_over_the_network(const std::string& path, const std::function<void()>& work) {
  int locked[2];
  CHECK(pipe(locked) == 0);
  fflush(nullptr);
  const pid_t server = fork();
  CHECK(server >= 0);
  if (server == 0) {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_len = 1;
    CHECK(fcntl(open(path.c_str(), O_RDWR | O_CLOEXEC), F_SETLK, &lock) == 0);
    CHECK(write(locked[1], "!", 1) == 1);
    for (;;) pause();
  }
  char byte;
  CHECK(read(locked[0], &byte, 1) == 1);
  work();
  close(locked[0]);
  close(locked[1]);
  CHECK(kill(server, SIGKILL) == 0 && waitpid(server, nullptr, 0) == server);
}

// Whoever cannot open an image learns on which host its writer is.
void writers_on_other_hosts() {
  const TemporaryDirectory directory;
  const std::string path = sample(directory);
  const auto refusal = [&] {
    auto opened = open_image(path, true);
    CHECK(!opened && opened.error().code == Code::kLocked);
    return opened.error().message.substr(path.size());
  };
  const auto host_of_holder = [&] { return MUST(open_image(path, false))->info().holder.host; };
  {
    const auto writer = MUST(open_image(path, true));
    const std::string me = std::to_string(getpid());
    CHECK(refusal() == " is open for writing by opening_test (pid " + me + ")");
    CHECK(host_of_holder().empty());
  }
  write_and_die(path);
  const std::string who = " is open for writing by opening_test (pid ";
  locked_over_the_network(path, [&] {
    // It has not written the superblock yet: the opener is a process of this host, which has died.
    CHECK(refusal() == " is open for writing by another process on another host");
    change_newest(path, [](Superblock* superblock) {
      superblock->boot = random_uuid();
      superblock->opener.host = "web2";
    });
    const std::string said = refusal();
    CHECK(said.starts_with(who) && said.ends_with(") on the host web2"));
    CHECK(host_of_holder() == "web2");
    change_newest(path, [](Superblock* superblock) { superblock->opener.host = ""; });
    CHECK(refusal().ends_with(") on another host"));
  });
  // A process of this host has the lock, and the opener is still one of another host.
  const auto file = MUST(File::open(path, true, nullptr));
  CHECK(MUST(file->try_lock()));
  CHECK(refusal() == " is open for writing by another process");
}

}  // namespace

int main() {
  waits_for_a_recovery();
  if (kThreadsOnly) return 0;
  restored_bases();
  commits();
  proofs();
  token_before_mark();
  recovers();
  newer_programs();
  contradictions();
  appended_bytes();
  another_base_after_a_rename();
  writers_on_other_hosts();
  return 0;
}
