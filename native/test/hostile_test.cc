// Images that another program made, or that were damaged: whatever the bytes, opening, reading and
// changing them succeeds, or fails with an error of the right class. Nothing crashes, hangs, or
// reads outside of the image.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "check.h"
#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"
#include "engine/format/entry.h"
#include "engine/format/superblock.h"

using namespace pcow;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr int kMutantValues[] = {0x00, 0x7f, 0xff};
#else
constexpr int kMutantValues[] = {0x00, 0x01, 0x7f, 0xff};
#endif

constexpr uint32_t kBlock = 16384;
constexpr uint64_t kImage = 20 * kBlock + 4096;

Result<std::unique_ptr<Image>> open_image(const std::string& path, bool write = false,
                                          const std::string& root = "") {
  OpenOptions options;
  options.write = write;
  options.base_root = root;
  return Image::open(path, options);
}

void make_image(const std::string& path, uint64_t size = kImage, uint32_t block_size = kBlock) {
  CreateOptions options;
  options.size = size;
  options.block_size = block_size;
  MUST(create_image(path, options));
}

Result<void> make_on_base(const std::string& path, const std::string& base,
                          const std::string& snapshot) {
  CreateOptions options;
  options.has_base = true;
  options.base.path = base;
  options.base.snapshot = snapshot;
  return create_image(path, options);
}

// The errors that damage may cause; any other error would mislead the user.
void check_class(const Error& error, const std::string& what) {
  static const std::set<Code> classes = {
      Code::kNotAnImage, Code::kUnsupported, Code::kCorrupt,     Code::kNotFound, Code::kNoSpace,
      Code::kTooLarge,   Code::kBaseMissing, Code::kBaseChanged, Code::kBaseLoop, Code::kLimit};
  if (classes.contains(error.code) && !error.message.empty()) return;
  fprintf(stderr, "%s: %s: %s\n", what.c_str(), code_name(error.code), error.message.c_str());
  exit(1);
}

// Tries every operation on an image; each may fail, with a fitting error.
void use(const std::string& path, bool write, const std::string& what) {
  auto opened = open_image(path, write);
  if (!opened) return check_class(opened.error(), what);
  Image& image = **opened;
  const auto tolerate = [&](const auto& result) {
    if (!result) check_class(result.error(), what);
    return result.ok();
  };
  std::vector<char> buffer(256 << 10);
  const auto read_all = [&](const View* view) {
    const uint64_t size = std::min<uint64_t>(view ? image.view_size(*view) : image.size(), 1 << 20);
    for (uint64_t at = 0; at < size; at += buffer.size())
      (void)tolerate(image.read(view, at, buffer.data(), buffer.size()));
  };
  (void)image.info();
  read_all(nullptr);
  if (auto listed = image.snapshots(true); tolerate(listed)) {
    for (const SnapshotInfo& info : *listed)
      if (auto view = image.view(info.name); tolerate(view)) read_all(view->get());
  }
  if (write) {
    (void)tolerate(image.write(4096, buffer.data(), 3 * kBlock));
    (void)tolerate(image.discard(kBlock, kBlock));
    (void)tolerate(image.sync());
    (void)tolerate(image.snapshot("new"));
    (void)tolerate(image.write(0, buffer.data(), 512));
    (void)tolerate(image.remove("two", nullptr));
    (void)tolerate(image.rollback("one"));
    (void)tolerate(image.resize(image.size() + 4096));
    read_all(nullptr);
    (void)tolerate(image.close());
  }
}

void use_bytes(const TemporaryDirectory& directory, const Bytes& bytes, const std::string& what) {
  const std::string path = directory / "damaged.pcow";
  for (const bool write : {false, true}) {
    save(path, bytes);
    use(path, write, what);
  }
}

// An image with two snapshots, a base, partial blocks and discarded ones.
Bytes sample(const TemporaryDirectory& directory) {
  std::vector<char> data(5 * kBlock, 'p');
  make_image(directory / "base.pcow");
  auto base = MUST(open_image(directory / "base.pcow", true));
  MUST(base->write(0, data.data(), data.size()));
  MUST(base->snapshot("ground"));
  MUST(base->close());
  MUST(make_on_base(directory / "sample.pcow", directory / "base.pcow", "ground"));
  auto image = MUST(open_image(directory / "sample.pcow", true));
  MUST(image->write(3 * kBlock + 4096, data.data(), 2 * kBlock));
  MUST(image->snapshot("one"));
  MUST(image->write(4 * kBlock, data.data(), 9000));
  MUST(image->discard(kBlock, 2 * kBlock));
  MUST(image->snapshot("two"));
  MUST(image->write(9 * kBlock, data.data(), 3 * kBlock));
  MUST(image->close());
  return load(directory / "sample.pcow");
}

void mend_checksum(uint8_t* structure, size_t length, size_t checksum_at) {
  put_field(structure, checksum_at, uint32_t{0});
  put_field(structure, checksum_at, crc32c(structure, length));
}

// Every byte of the fields of superblock and layer directory gets several values, with the old
// checksum and with a right one.
void mutate_structures(const TemporaryDirectory& directory, const Bytes& good) {
  const auto first = MUST(Superblock::decode(good.data(), "slot 0"));
  const auto second = MUST(Superblock::decode(good.data() + kPageSize, "slot 1"));
  const bool later = second.generation > first.generation;
  const Superblock& superblock = later ? second : first;
  const size_t slot = later ? kPageSize : 0;
  Bytes bad = good;
  const auto mutate = [&](size_t start, size_t length, size_t checksum_at, size_t fields,
                          const char* name) {
    for (size_t at = 0; at < fields; at += at < 160 ? 1 : 7) {
      for (const int value : kMutantValues) {
        if (good[start + at] == value) continue;
        bad[start + at] = static_cast<uint8_t>(value);
        const std::string what =
            std::string(name) + " byte " + std::to_string(at) + " = " + std::to_string(value);
        if (value == 0xff) use_bytes(directory, bad, what);
        mend_checksum(bad.data() + start, length, checksum_at);
        use_bytes(directory, bad, what + " with a right checksum");
        memcpy(bad.data() + start, good.data() + start, length);
      }
    }
  };
  mutate(slot, kPageSize, 12, 300, "superblock");
  mutate(superblock.directory_offset, superblock.directory_length, 8, superblock.directory_length,
         "directory");
}

void damage_at_random(const TemporaryDirectory& directory, const Bytes& good,
                      std::mt19937_64* random) {
  const int rounds = effort(1000, 150, 40);
  for (int round = 0; round < rounds; round++) {
    Bytes bad = good;
    const std::string what = "random damage, round " + std::to_string(round);
    const uint64_t kind = (*random)() % 4;
    if (kind == 0) {  // cut off
      bad.resize((*random)() % (bad.size() + 1));
    } else if (kind == 1) {  // flipped bits, mostly in structures
      for (int i = 0; i < 20; i++) {
        const size_t at = (*random)() % bad.size();
        if (bad[at] || (*random)() % 8 == 0) bad[at] ^= static_cast<uint8_t>(1 << (*random)() % 8);
      }
    } else if (kind == 2) {  // one part copied over another
      const size_t length = 1 + (*random)() % (2 * kBlock);
      const size_t from = (*random)() % (bad.size() - length);
      const size_t to = (*random)() % (bad.size() - length);
      memmove(bad.data() + to, good.data() + from, length);
    } else {  // entries that no writer stored
      const auto superblock = MUST(Superblock::decode(good.data() + kPageSize, "slot 1"));
      for (int i = 0; i < 30; i++) {
        const size_t block = superblock.directory_offset / kBlock + (*random)() % 4;
        const size_t at = (block * kBlock + (*random)() % 21 * 8) % (bad.size() - 8);
        put_field(
            bad.data(), at,
            Entry{static_cast<uint32_t>((*random)() % (2 * bad.size() / kBlock)),
                  static_cast<uint16_t>((*random)() % 32), static_cast<uint16_t>((*random)() % 32)}
                .pack());
      }
    }
    use_bytes(directory, bad, what);
  }
}

void not_images(const TemporaryDirectory& directory) {
  save(directory / "empty", {});
  FAILS(open_image(directory / "empty"), Code::kNotAnImage);
  FAILS(open_image(directory / "empty", true), Code::kNotAnImage);
  save(directory / "text", Bytes(100000, 'x'));
  FAILS(open_image(directory / "text", true), Code::kNotAnImage);
  FAILS(open_image(directory / "nothing"), Code::kNotFound);
  FAILS(open_image(directory.path()), Code::kNotAnImage);
  CHECK(mkfifo((directory / "fifo").c_str(), 0600) == 0);
  FAILS(open_image(directory / "fifo"), Code::kNotAnImage);
  FAILS(make_on_base(directory / "on-fifo.pcow", directory / "fifo", "x"), Code::kBaseMissing);
}

void bases(const TemporaryDirectory& directory) {
  for (const char* name : {"/in", "/out"})
    CHECK(mkdir((directory.path() + name).c_str(), 0700) == 0);
  const std::string root = directory / "in";
  for (const std::string& path : {directory / "in/a.pcow", directory / "out/o.pcow"}) {
    make_image(path);
    auto image = MUST(open_image(path, true));
    MUST(image->snapshot("s"));
    MUST(image->close());
  }
  MUST(make_on_base(directory / "in/b.pcow", directory / "in/a.pcow", "s"));
  MUST(open_image(directory / "in/b.pcow", false, root));
  FAILS(make_on_base(directory / "in/none.pcow", directory / "in/a.pcow", "unknown"),
        Code::kNotFound);

  // Outside of the directory, directly and through a symbolic link.
  MUST(make_on_base(directory / "in/c.pcow", directory / "out/o.pcow", "s"));
  FAILS(open_image(directory / "in/c.pcow", false, root), Code::kBaseOutside);
  FAILS(open_image(directory / "in/c.pcow", true, root), Code::kBaseOutside);
  MUST(make_on_base(directory / "in/d.pcow", directory / "in/a.pcow", "s"));
  CHECK(rename((directory / "in/a.pcow").c_str(), (directory / "out/a.pcow").c_str()) == 0);
  FAILS(open_image(directory / "in/d.pcow"), Code::kBaseMissing);
  CHECK(symlink((directory / "out/a.pcow").c_str(), (directory / "in/a.pcow").c_str()) == 0);
  FAILS(open_image(directory / "in/d.pcow", false, root), Code::kBaseOutside);
  MUST(open_image(directory / "in/d.pcow"));

  // At its path: another image, another kind of file, and a loop.
  CHECK(unlink((directory / "in/a.pcow").c_str()) == 0);
  make_image(directory / "in/a.pcow");
  FAILS(open_image(directory / "in/d.pcow"), Code::kBaseChanged);
  CHECK(unlink((directory / "in/a.pcow").c_str()) == 0);
  CHECK(mkfifo((directory / "in/a.pcow").c_str(), 0600) == 0);
  FAILS(open_image(directory / "in/d.pcow"), Code::kBaseMissing);
  make_image(directory / "x.pcow");
  auto x = MUST(open_image(directory / "x.pcow", true));
  MUST(x->snapshot("s"));
  MUST(make_on_base(directory / "y.pcow", directory / "x.pcow", "s"));
  auto y = MUST(open_image(directory / "y.pcow", true));
  MUST(y->snapshot("t"));
  BaseSpec spec;
  spec.path = directory / "y.pcow";
  spec.snapshot = "t";
  FAILS(x->set_base(spec, true), Code::kBaseLoop);
  MUST(x->close());
  MUST(y->close());
  // Made by hand: x stands on y, which stands on x.
  Bytes bytes = load(directory / "x.pcow");
  const auto at_y = MUST(open_image(directory / "y.pcow"));
  for (const size_t slot : {size_t{0}, size_t{kPageSize}}) {
    auto superblock = MUST(Superblock::decode(bytes.data() + slot, "x"));
    const auto other = load(directory / "y.pcow");
    superblock.base = BaseReference{"y.pcow", MUST(Superblock::decode(other.data(), "y")).uuid,
                                    MUST(at_y->layer_id("t"))};
    const auto encoded = superblock.encode();
    memcpy(bytes.data() + slot, encoded.data(), encoded.size());
  }
  save(directory / "x.pcow", bytes);
  FAILS(open_image(directory / "x.pcow"), Code::kBaseLoop);
  FAILS(open_image(directory / "y.pcow", true), Code::kBaseLoop);
}

void names(const TemporaryDirectory& directory) {
  make_image(directory / "names.pcow");
  auto image = MUST(open_image(directory / "names.pcow", true));
  for (const std::string& bad :
       {std::string(), std::string(256, 'n'), std::string(300, 'n'), std::string("."),
        std::string(".."), std::string("a/b"), std::string("a@b"), std::string("a b"),
        std::string("a\nb"), std::string("a\0b", 3), std::string("\x7f"), std::string("\xff"),
        std::string("\xc0\xaf"), std::string("\xed\xa0\x80"), std::string("\xf5\x80\x80\x80"),
        std::string("\xe2\x82"), std::string("a\x80")})
    FAILS(image->snapshot(bad), Code::kInvalid);
  for (const std::string& good :
       {std::string(255, 'n'), std::string("größe-✓-😀"), std::string("...")}) {
    MUST(image->snapshot(good));
    FAILS(image->snapshot(good), Code::kExists);
  }
  FAILS(image->remove("unknown", nullptr), Code::kNotFound);
  FAILS(image->rollback("unknown"), Code::kNotFound);
  FAILS(image->view("unknown"), Code::kNotFound);
  MUST(image->close());
}

void second_writer(const TemporaryDirectory& directory) {
  const std::string path = directory / "held.pcow";
  make_image(path);
  auto image = MUST(open_image(path, true));
  auto second = open_image(path, true);
  CHECK(!second && second.error().code == Code::kLocked);
  CHECK(second.error().message.find("pid " + std::to_string(getpid())) != std::string::npos);
  CreateOptions options;
  options.size = kImage;
  FAILS(create_image(path, options), Code::kExists);
  auto reader = MUST(open_image(path));
  CHECK(reader->info().has_holder && reader->info().holder.pid == static_cast<uint32_t>(getpid()));
  FAILS(reader->write(0, "x", 1), Code::kReadOnly);
  FAILS(reader->snapshot("s"), Code::kReadOnly);
  MUST(image->close());
  CHECK(!reader->info().has_holder);
}

void sizes(const TemporaryDirectory& directory) {
  const auto refused = [&](uint64_t size, uint32_t block_size, Code code) {
    CreateOptions options;
    options.size = size;
    options.block_size = block_size;
    FAILS(create_image(directory / "refused.pcow", options), code);
    CHECK(access((directory / "refused.pcow").c_str(), F_OK) != 0);
  };
  for (const uint64_t size : {0ull, 1ull, 4096ull, 65535ull, 65536ull + 512})
    refused(size, 0, Code::kInvalid);
  refused((uint64_t{64} << 40) + 4096, 0, Code::kTooLarge);
  refused((uint64_t{4} << 40) + 4096, 4096, Code::kTooLarge);
  refused(~uint64_t{4095}, 0, Code::kTooLarge);
  for (const uint32_t block_size : {1u, 512u, 2048u, 5000u, 65537u, 4u << 20, 1u << 31})
    refused(1 << 20, block_size, Code::kInvalid);

  for (const uint32_t block_size : {4096u, 8192u, 65536u, 2097152u}) {
    const uint64_t largest = std::min(uint64_t{block_size} << 30, uint64_t{64} << 40);
    for (const uint64_t size :
         {uint64_t{65536}, uint64_t{65536 + 4096}, uint64_t{1000 * 4096 + 3 * 4096},
          (uint64_t{1} << 40) - 4096, largest}) {
      const std::string path = directory / "size.pcow";
      make_image(path, size, block_size);
      auto image = MUST(open_image(path, true));
      CHECK(image->size() == size);
      char byte = 'b';
      MUST(image->write(size - 1, &byte, 1));
      FAILS(image->write(size - 1, "xy", 2), Code::kTooLarge);
      FAILS(image->write(~uint64_t{0}, "x", 1), Code::kTooLarge);
      FAILS(image->discard(size, 1), Code::kInvalid);
      MUST(image->snapshot("s"));
      byte = 'c';
      MUST(image->write(size - 1, &byte, 1));
      MUST(image->discard(0, size - 4096));
      MUST(image->close());
      image = MUST(open_image(path));
      char found[2] = {};
      CHECK(MUST(image->read(nullptr, size - 1, found, 2)) == 1 && found[0] == 'c');
      const auto view = MUST(image->view("s"));
      CHECK(MUST(image->read(view.get(), size - 1, found, 2)) == 1 && found[0] == 'b');
      CHECK(MUST(image->read(nullptr, size, found, 2)) == 0);
      CHECK(image->info().disk_use < 32 << 20);
      CHECK(unlink(path.c_str()) == 0);
    }
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(test_seed());
  TemporaryDirectory directory("/dev/shm");
  not_images(directory);
  bases(directory);
  names(directory);
  second_writer(directory);
  const Bytes good = sample(directory);
  use_bytes(directory, good, "the undamaged image");
  mutate_structures(directory, good);
  damage_at_random(directory, good, &random);
  TemporaryDirectory disk;  // tables of terabytes on a real filesystem
  sizes(disk);
  return 0;
}
