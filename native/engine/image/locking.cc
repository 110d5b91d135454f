#include "engine/image/locking.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <ctime>

#include "engine/format/superblock.h"

namespace pcow {
namespace {

struct flock recovery_lock() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = 3;
  lock.l_len = 1;
  return lock;
}

bool is_being_recovered(const File& file) {
  struct flock lock = recovery_lock();
  return fcntl(file.descriptor(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

}  // namespace

Result<bool> try_lock_for_recovery(const File& file) {
  struct flock lock = recovery_lock();
  if (fcntl(file.descriptor(), F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES) return false;
  return system_error(errno, "cannot lock " + file.path());
}

Error locked_by(const File& file) {
  // The opener is an older one until the process that has the lock writes the superblock.
  const bool elsewhere = file.is_locked_by_other_host();
  auto superblock = read_superblock(file);
  const bool known = superblock && superblock->opener.pid &&
                     superblock->opened_elsewhere() == elsewhere &&
                     (elsewhere || superblock->opener.alive());
  std::string who =
      known ? superblock->opener.command + " (pid " + std::to_string(superblock->opener.pid) + ")"
            : "another process";
  if (elsewhere && known && !superblock->opener.host.empty())
    who += " on the host " + superblock->opener.host;
  else if (elsewhere)
    who += " on another host";
  return Error(Code::kLocked, file.path() + " is open for writing by " + who);
}

Result<std::shared_ptr<File>> open_locked(const std::string& path, FileObserver* observer) {
  for (;;) {
    auto file = File::open(path, true, observer);
    if (!file) return file.error();
    auto size = (*file)->size();
    if (!size) return size.error();
    // Asked before and after, because a recovery may begin or end in between.
    const bool recovered = is_being_recovered(**file);
    auto locked = (*file)->try_lock();
    if (!locked) return locked.error();
    if (!*locked && (recovered || is_being_recovered(**file))) {
      const timespec pause = {0, 5'000'000};
      nanosleep(&pause, nullptr);
      continue;
    }
    if (!*locked) return locked_by(**file);
    auto mine = (*file)->status();
    if (!mine) return mine.error();
    struct stat named;
    if (stat(path.c_str(), &named) < 0) return system_error(errno, "cannot open " + path);
    if (named.st_dev == mine->st_dev && named.st_ino == mine->st_ino) return file;
  }
}

}  // namespace pcow
