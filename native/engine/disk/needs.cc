#include "engine/disk/needs.h"

#include <unistd.h>

#include <cstring>

#include "engine/disk/file.h"
#include "engine/disk/page.h"

namespace pcow {
namespace {

// Long enough for an extent size hint of XFS (2 MiB for huge mappings of persistent memory), which
// makes a single page take as much.
constexpr uint64_t kLength = uint64_t{64} << 20;
constexpr uint64_t kPlace = kLength / 2;  // offset of the page that is tried

// If a system call failed because it is not supported, the error says so; every other failure stays
// as it is.
Result<void> there(const Result<void>& tried, const File& file, const char* lack) {
  if (tried) return {};
  switch (tried.error().err) {
    case EOPNOTSUPP:
    case ENOSYS:
    case EINVAL:
    case ENODEV: return lacking(file.path(), lack);
    default: return tried.error();
  }
}

Result<void> check_sparse(File& file) {
  PCOW_TRY(file.resize(kLength));
  auto status = file.status();
  if (!status) return status.error();
  if (static_cast<uint64_t>(status->st_blocks) * 512 >= kLength / 2)
    return lacking(file.path(), "has no sparse files");
  auto data = file.next_data(0, kLength);
  return there(data ? Result<void>() : Result<void>(data.error()), file,
               "cannot tell where files have data");
}

Result<bool> reads_as(const File& file, const char* page) {
  char found[kPageSize];
  PCOW_TRY(file.read_all(kPlace, found, sizeof found));
  return memcmp(found, page, sizeof found) == 0;
}

Result<void> check_holes(File& file) {
  PCOW_TRY(there(file.allocate(kPlace, kPageSize), file, "cannot reserve space"));
  char page[kPageSize];
  memset(page, 1, sizeof page);
  PCOW_TRY(file.write(kPlace, page, sizeof page));
  PCOW_TRY(there(file.punch(kPlace, kPageSize), file, "cannot punch holes"));
  memset(page, 0, sizeof page);
  auto empty = reads_as(file, page);
  if (!empty) return empty.error();
  return *empty ? Result<void>() : lacking(file.path(), "cannot punch holes");
}

// What one process stores through its mapping, another must see with read(2), and the other way
// round.
Result<void> check_mappings(File& file) {
  PCOW_TRY(file.allocate(kPlace, kPageSize));
  auto mapping = file.map(kPlace, kPageSize, true);
  if (!mapping) return there(mapping.error(), file, "has no shared mappings");
  char page[kPageSize];
  memset(page, 2, sizeof page);
  memcpy((*mapping)->words(), page, sizeof page);
  auto read = reads_as(file, page);
  if (!read) return read.error();
  memset(page, 3, sizeof page);
  PCOW_TRY(file.write(kPlace, page, sizeof page));
  const bool mapped = memcmp((*mapping)->words(), page, sizeof page) == 0;
  if (file.is_torn()) return file.torn();
  return *read && mapped
             ? Result<void>()
             : lacking(file.path(), "keeps shared mappings apart from reads and writes");
}

Result<void> try_all(File& file) {
  PCOW_TRY(check_sparse(file));
  PCOW_TRY(check_holes(file));
  return check_mappings(file);
}

}  // namespace

Error lacking(const std::string& path, const std::string& lack) {
  return {Code::kUnsupported,
          path + ": the filesystem there " + lack + ", and an image needs that: use ext4 or XFS"};
}

Result<void> check_needs(const std::string& path) {
  auto file = File::open(path, true, nullptr);
  if (!file) return file.error();
  auto outcome = try_all(**file);
  if (outcome && ftruncate((*file)->descriptor(), 0) != 0)
    return disk_error(errno, "cannot empty " + path);
  return outcome;
}

}  // namespace pcow
