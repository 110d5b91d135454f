// Opens, walks, checks and repairs images that are not to be trusted: for reading, then for
// writing. The input is the file. A mutated input mostly gets correct checksums, so that the engine
// also interprets the data that they cover. The engine must not crash, run for ever, use memory
// that the file's size does not justify, or open a file outside the directory.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/check/check.h"
#include "engine/check/scrub.h"
#include "engine/format/bytes.h"
#include "engine/format/crc32c.h"
#include "engine/image/image.h"

using namespace pcow;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr size_t kPage = 4096;
constexpr uint64_t kMostRead = 1 << 18;
constexpr size_t kChecksumAt = 12;          // of a superblock
constexpr size_t kDirectoryAt = 80;         // … its fields: offset, length
constexpr size_t kDirectoryChecksumAt = 8;  // of a directory
constexpr uint64_t kMostSize = 1 << 20;

const std::string& directory() {
  // Never destroyed: the function at the process's exit needs it.
  static const std::string* const path = [] {
    auto* made = new std::string("/dev/shm/pcow-fuzz-XXXXXX");
    if (!mkdtemp(made->data())) abort();
    atexit([] { (void)!system(("rm -rf " + directory()).c_str()); });
    return made;
  }();
  return *path;
}

void write_file(const std::string& path, const uint8_t* data, size_t size) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0 || write(file, data, size) != static_cast<ssize_t>(size)) abort();
  close(file);
}

void seal(uint8_t* data, size_t size, size_t at, size_t length, size_t checksum_at) {
  if (at > size || length > size - at || length < checksum_at + 4) return;
  memset(data + at + checksum_at, 0, 4);
  put_field(data + at, checksum_at, crc32c(data + at, length));
}

// Reads only both ends of a layer, because an image may be far larger than its file.
void read_ends(const Image& image, const View* view) {
  const uint64_t size = view ? image.view_size(*view) : image.size();
  std::vector<char> buffer(std::min(size, kMostRead));
  (void)image.read(view, 0, buffer.data(), buffer.size());
  (void)image.read(view, size - buffer.size(), buffer.data(), buffer.size());
}

void walk(const std::string& path) {
  OpenOptions options;
  options.base_root = directory();
  auto image = Image::open(path, options);
  if (!image) return;
  const ImageInfo info = (*image)->info();
  for (const LayerRef& layer : info.chain)
    if (layer.path.compare(0, directory().size(), directory()) != 0) abort();
  read_ends(**image, nullptr);
  if (const auto report = (*image)->scrub(nullptr);
      report && report->findings.size() > kListedFindings)
    abort();
  auto snapshots = (*image)->snapshots(true);
  if (!snapshots) return;
  for (const SnapshotInfo& snapshot : *snapshots)
    if (auto view = (*image)->view(snapshot.name)) read_ends(**image, view->get());
}

void check(const std::string& path, bool repair) {
  CheckOptions options;
  options.repair = repair;
  const auto report = check_image(path, options, nullptr);
  if (!report) return;
  if (report->findings.size() > 3 * kListedFindings) abort();
  if (!report->lost_path.empty()) {
    if (report->lost_path.compare(0, directory().size(), directory()) != 0) abort();
    unlink(report->lost_path.c_str());
  }
}

void change(const std::string& path) {
  OpenOptions options;
  options.base_root = directory();
  options.write = true;
  auto opened = Image::open(path, options);
  if (!opened) return;
  Image& image = **opened;
  const std::vector<char> bytes(10000, 1);
  const uint64_t size = image.size();
  FaultWork work;
  (void)image.write(0, bytes.data(), bytes.size());
  (void)image.write(size - bytes.size(), bytes.data(), bytes.size());
  (void)image.discard(4096, 20000);
  (void)image.make_writable(8192, {.ahead = 65536}, &work);
  (void)image.snapshot("fuzzed");
  (void)image.write(30000, bytes.data(), bytes.size());
  if (size < kMostSize) {
    (void)image.complete_chunk(0, &work);
    (void)image.add_checksums(nullptr);
  }
  if (auto snapshots = image.snapshots(false); snapshots && !snapshots->empty()) {
    (void)image.remove(snapshots->front().name, nullptr);
    (void)image.rollback(snapshots->back().name);
  }
  (void)image.resize(image.size() + 4096);
  (void)image.sync();
  (void)image.close();
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  // Most of an image is zeros, and its structures are in the first pages, so most mutations go
  // there.
  const size_t page = seed / 8 % 16 * kPage;
  if (seed % 4 && page + kPage <= size) {
    const size_t length = LLVMFuzzerMutate(data + page, kPage, kPage);
    memset(data + page + length, 0, kPage - length);
  } else {
    size = LLVMFuzzerMutate(data, size, max_size);
  }
  if (seed % 8 == 0) return size;
  for (const size_t slot : {size_t{0}, kPage}) {
    if (size < slot + kPage) break;
    const auto offset = get_field<uint64_t>(data + slot, kDirectoryAt);
    const auto length = get_field<uint64_t>(data + slot, kDirectoryAt + 8);
    seal(data, size, offset, length, kDirectoryChecksumAt);
    seal(data, size, slot, kPage, kChecksumAt);
  }
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = directory() + "/image.pcow";
  write_file(path, data, size);
  walk(path);
  check(path, false);
  change(path);
  walk(path);
  write_file(path, data, size);
  check(path, true);
  walk(path);
  return 0;
}
