#include "engine/image/recovery.h"

#include "engine/disk/file.h"
#include "engine/format/superblock.h"
#include "engine/image/image.h"
#include "engine/image/locking.h"
#include "engine/image/page_cache.h"

namespace pcow {
namespace {

Result<bool> has_something_to_save(const File& file) {
  auto superblock = read_superblock(file);
  if (!superblock) return superblock.error();
  return !superblock->clean && page_cache_survived(file, *superblock);
}

}  // namespace

Result<Recovery> recover_image(const std::string& path) {
  {
    // Most images are clean, or open: looking needs no right to write.
    auto looked_at = File::open(path, false, nullptr);
    if (!looked_at) return looked_at.error();
    if ((*looked_at)->is_locked_by_other()) return Recovery::kInUse;
    auto wanted = has_something_to_save(**looked_at);
    if (!wanted) return wanted.error();
    if (!*wanted) return Recovery::kNothing;
  }
  auto file = File::open(path, true, nullptr);
  if (!file) return file.error();
  auto mine = try_lock_for_recovery(**file);
  if (mine && *mine) mine = (*file)->try_lock();
  if (!mine) return mine.error();
  if (!*mine) return Recovery::kInUse;
  auto wanted = has_something_to_save(**file);
  if (!wanted) return wanted.error();
  if (!*wanted) return Recovery::kNothing;
  OpenOptions options;
  options.write = true;
  options.without_bases = true;
  options.given = {{path, (*file)->descriptor()}};
  auto image = Image::open(path, options);
  if (!image) return image.error();
  PCOW_TRY((*image)->close());
  return Recovery::kRecovered;
}

}  // namespace pcow
