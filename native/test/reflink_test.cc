// An image that was copied with reflinks, and a full disk. Its blocks and its tables share their
// space with the copy: a store into a mapping of them would find no space, and raise SIGBUS. So
// they must get space of their own first. The test runs on XFS, which it makes in a file
// (scripts/setup disks).
#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "check.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 65536;
constexpr uint64_t kBlocks = 16;

void must_run(const std::string& command) {
  if (system((command + " > /dev/null").c_str()) == 0) return;
  fprintf(stderr, "failed: %s\n", command.c_str());
  exit(1);
}

// A filesystem in a file. It is mounted as long as this object, or the process, lives.
class XfsInFile {
 public:
  XfsInFile() : directory_("/var/tmp") {
    const std::string disk = directory_ / "disk";
    { std::ofstream made(disk); }
    std::filesystem::resize_file(disk, 320 << 20);
    std::filesystem::create_directory(root());
    must_run("PATH=$PATH:/usr/sbin mkfs.xfs -q -m reflink=1 " + disk);
    must_run("mount -o loop " + disk + " " + root());
    mounted = root();
    atexit(unmount);
  }
  ~XfsInFile() { unmount(); }
  std::string root() const { return directory_ / "root"; }
  std::string operator/(const std::string& name) const { return root() + "/" + name; }

  // Takes all space, in smaller and smaller pieces.
  void fill() const {
    const int ballast = open((*this / "ballast").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(ballast >= 0);
    off_t end = 0;
    for (off_t piece = 64 << 20; piece >= 4096;) {
      if (fallocate(ballast, 0, end, piece) == 0) {
        end += piece;
      } else {
        piece /= 2;
      }
    }
    close(ballast);
  }
  // XFS does this later, unless it is asked how much space is free.
  void free_space() const {
    std::filesystem::remove(*this / "ballast");
    while (std::filesystem::space(root()).available < 32 << 20) usleep(10'000);
  }

 private:
  static inline std::string mounted;
  static void unmount() {
    if (!mounted.empty()) must_run("umount -l " + std::exchange(mounted, ""));
  }

  TemporaryDirectory directory_;
};

std::unique_ptr<Image> open_image(const std::string& path, bool write) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

void make(const XfsInFile& disk, const std::string& name) {
  CreateOptions create;
  create.size = 64 << 20;
  MUST(create_image(disk / name, create));
  auto image = open_image(disk / name, true);
  const std::vector<char> bytes(kBlocks * kBlock, 'a');
  MUST(image->write(0, bytes.data(), bytes.size()));
  MUST(image->close());
  image.reset();
  must_run("cp --reflink=always " + disk / name + " " + disk / name + ".copy");
}

void must_hold(const std::string& path, char value) {
  std::vector<char> bytes(kBlocks * kBlock);
  CHECK(MUST(open_image(path, false)->read(nullptr, 0, bytes.data(), bytes.size())) ==
        bytes.size());
  CHECK(bytes == std::vector<char>(bytes.size(), value));
}

// What a guest has mapped.
void blocks(const XfsInFile& disk) {
  const std::string path = disk / "blocks";
  make(disk, "blocks");
  auto image = open_image(path, true);
  disk.fill();
  FaultWork work;
  FAILS(image->held(0), Code::kNoSpace);
  FAILS(image->make_writable(kBlock, {}, &work), Code::kNoSpace);
  disk.free_space();
  const Extent extent = MUST(image->make_writable(0, {}, &work));
  CHECK(extent.offset == 0 && extent.length == kBlocks * kBlock);
  disk.fill();
  void* mapped = mmap(nullptr, extent.length, PROT_READ | PROT_WRITE, MAP_SHARED,
                      image->descriptor(), static_cast<off_t>(extent.file_offset));
  CHECK(mapped != MAP_FAILED);
  memset(mapped, 'b', extent.length);
  // It has its space now: asking again needs none.
  CHECK(MUST(image->held(0)).length == extent.length);
  MUST(image->sync());
  CHECK(munmap(mapped, extent.length) == 0);
  disk.free_space();
  MUST(image->close());
  must_hold(path, 'b');
  must_hold(path + ".copy", 'a');
}

// What the engine has mapped: a discard stores into a table, and so does a sync.
void tables(const XfsInFile& disk) {
  make(disk, "tables");
  auto image = open_image(disk / "tables", true);
  disk.fill();
  // The table's page is shared with the copy as well, and gets space of its own from the reserve.
  for (uint64_t block = 0; block < kBlocks; block++) MUST(image->discard(block * kBlock, kBlock));
  MUST(image->sync());
  disk.free_space();
  MUST(image->close());
  must_hold(disk / "tables", 0);
  must_hold(disk / "tables.copy", 'a');
}

}  // namespace

int main() {
  const XfsInFile disk;
  blocks(disk);
  tables(disk);
  return 0;
}
