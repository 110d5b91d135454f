#include "addon/attach_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "engine/disk/file.h"
#include "engine/image/locking.h"

namespace pcow::addon {

bool identity_of(int descriptor, uint64_t* device, uint64_t* inode) {
  struct statx status;
  if (statx(descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) < 0)
    return false;
  *device = makedev(status.stx_dev_major, status.stx_dev_minor);
  *inode = status.stx_ino;
  return true;
}

bool holds_lock(int descriptor) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  return fcntl(descriptor, F_OFD_SETLK, &lock) == 0;
}

namespace {

// Opens an image with the writer's lock if `write` is set. Bases, and images that are only read,
// are opened without it.
Result<protocol::Descriptor> open_for_handover(const std::string& path, bool write) {
  auto file = File::open(path, write, nullptr);
  if (!file) return file.error();
  if (write) {
    auto locked = (*file)->try_lock();
    if (!locked) return locked.error();
    if (!*locked) return locked_by(**file);
  }
  // The lock belongs to the open file description, so every duplicate of the descriptor has it.
  protocol::Descriptor descriptor(fcntl((*file)->descriptor(), F_DUPFD_CLOEXEC, 0));
  if (!descriptor) return system_error(errno, "cannot pass on " + path);
  return descriptor;
}

}  // namespace

Result<void> add_files(protocol::Packet* packet, const std::vector<std::string>& paths,
                       bool write) {
  for (const std::string& path : paths) {
    auto opened = open_for_handover(path, write && packet->descriptors.empty());
    if (!opened) return opened.error();
    packet->descriptors.push_back(std::move(*opened));
    packet->text += path;
    packet->text += '\0';
  }
  return {};
}

}  // namespace pcow::addon
