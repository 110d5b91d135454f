#include "model_compare.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

using namespace pcow;

void compare(const Image& image, const View* view, const Bytes& expected, const std::string& what) {
  Bytes found(expected.size() + 1);
  const size_t count =
      MUST(with_remote([&] { return image.read(view, 0, found.data(), found.size()); }));
  CHECK(count == expected.size());
  if (memcmp(found.data(), expected.data(), count) == 0) return;
  for (size_t i = 0; i < count; i++) {
    if (found[i] == expected[i]) continue;
    fprintf(stderr, "%s differs at byte %zu: %u instead of %u\n", what.c_str(), i, found[i],
            expected[i]);
    exit(1);
  }
}

bool reads_as(const Image& image, const Bytes& expected) {
  Bytes found(expected.size() + 1);
  const size_t count =
      MUST(with_remote([&] { return image.read(nullptr, 0, found.data(), found.size()); }));
  found.resize(count);
  return found == expected;
}

// mapped. Returns where that begins.
uint64_t compare_batch(const Image& image, const View* view, uint64_t offset, const Bytes& expected,
                       const std::string& what) {
  ExtentBatch batch = MUST(image.map(view, offset, {}));
  // What is remote is nowhere in the file yet.
  const auto remote = [&] {
    return std::find_if(batch.extents.begin(), batch.extents.end(),
                        [](const MapExtent& extent) { return extent.remote; });
  };
  for (auto at = remote(); at != batch.extents.end(); at = remote()) {
    Bytes found(at->length);
    MUST(with_remote([&] { return image.read(view, at->offset, found.data(), found.size()); }));
    batch = MUST(image.map(view, offset, {}));
  }
  CHECK(batch.size == expected.size());
  uint64_t end = offset;
  for (const MapExtent& extent : batch.extents) {
    CHECK(extent.offset == end && extent.length > 0);
    end += extent.length;
    CHECK(end <= expected.size());
    Bytes found(extent.length);
    if (extent.kind == ExtentKind::kData) {
      const int descriptor = open(batch.chain[extent.depth].path.c_str(), O_RDONLY | O_CLOEXEC);
      CHECK(descriptor >= 0);
      CHECK(pread(descriptor, found.data(), found.size(), static_cast<off_t>(extent.file_offset)) ==
            static_cast<ssize_t>(found.size()));
      close(descriptor);
    }
    if (memcmp(found.data(), expected.data() + extent.offset, found.size()) == 0) continue;
    fprintf(stderr, "the map of %s is wrong at %llu\n", what.c_str(),
            static_cast<unsigned long long>(extent.offset));
    exit(1);
  }
  CHECK(batch.next > offset && batch.next == end && (end == expected.size() || end % 4096 == 0));
  return end;
}

void compare_map(const Image& image, const View* view, const Bytes& expected,
                 const std::string& what) {
  uint64_t offset = 0;
  do offset = compare_batch(image, view, offset, expected, what);
  while (offset < expected.size());
}

// are listed.
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
