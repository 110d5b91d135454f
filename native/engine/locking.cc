#include "locking.h"

#include <sys/stat.h>

#include "superblock.h"

namespace pcow {

Error locked_by(const File& file) {
  auto superblock = read_superblock(file);
  std::string who = "another process";
  if (superblock && superblock->opener.pid && superblock->opener.alive())
    who = superblock->opener.command + " (pid " + std::to_string(superblock->opener.pid) + ")";
  return Error(Code::kLocked, file.path() + " is open for writing by " + who);
}

Result<std::shared_ptr<File>> open_locked(const std::string& path, FileObserver* observer) {
  for (;;) {
    auto file = File::open(path, true, observer);
    if (!file) return file.error();
    auto size = (*file)->size();
    if (!size) return size.error();
    auto locked = (*file)->try_lock();
    if (!locked) return locked.error();
    if (!*locked) return locked_by(**file);
    auto mine = (*file)->status();
    if (!mine) return mine.error();
    struct stat named;
    if (stat(path.c_str(), &named) < 0) return system_error(errno, "cannot open " + path);
    if (named.st_dev == mine->st_dev && named.st_ino == mine->st_ino) return file;
  }
}

}  // namespace pcow
