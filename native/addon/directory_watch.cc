#include "addon/directory_watch.h"

#include <linux/magic.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "addon/flat_files.h"
#include "addon/fuse_nodes.h"
#include "engine/disk/bus_guard.h"

namespace pcow::addon {

namespace {

// <linux/magic.h> does not define these everywhere.
constexpr unsigned long kZfs = 0x2fc12fc1;
constexpr unsigned long kBcachefs = 0xca451a4e;

// Filesystems on which only this machine changes files.
constexpr std::array<unsigned long, 8> kLocal = {EXT4_SUPER_MAGIC,
                                                 XFS_SUPER_MAGIC,
                                                 BTRFS_SUPER_MAGIC,
                                                 TMPFS_MAGIC,
                                                 F2FS_SUPER_MAGIC,
                                                 OVERLAYFS_SUPER_MAGIC,
                                                 kZfs,
                                                 kBcachefs};

// Changes of names and of attributes. A writer of an image is noticed when it closes the file.
constexpr uint32_t kOfDirectory = IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO |
                                  IN_CLOSE_WRITE | IN_DELETE_SELF | IN_ONLYDIR;
// This notices a writer that does not close the file. inotify reports only the first write: then
// the kernel must ask for the attributes again, and the answer watches the file again. So a file
// that is written all the time costs at most one event for each question of the kernel.
constexpr uint32_t kOfFile = IN_MODIFY | IN_ONESHOT;

bool is_local(int directory) {
  struct statfs found;
  return fstatfs(directory, &found) == 0 &&
         std::find(kLocal.begin(), kLocal.end(), static_cast<unsigned long>(found.f_type)) !=
             kLocal.end();
}

std::string path_of(int directory, const std::string& file) {
  return "/proc/self/fd/" + std::to_string(directory) + "/" + file;
}

}  // namespace

DirectoryWatch& DirectoryWatch::instance() {
  static DirectoryWatch& watch = *new DirectoryWatch();
  return watch;
}

void DirectoryWatch::begin(int directory) {
  if (!is_local(directory)) return;
  directory_ = directory;
  events_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  stop_ = eventfd(0, EFD_CLOEXEC);
  if (events_ >= 0 && stop_ >= 0)
    whole_ = inotify_add_watch(events_, path_of(directory, "").c_str(), kOfDirectory);
  if (whole_ < 0) return end();
  // The new thread must not handle signals: they are for the program's own threads.
  const SignalsHeld held;
  reader_ = std::thread([this] { read_events(); });
  active_ = true;
}

void DirectoryWatch::end() {
  active_ = false;
  if (reader_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_, &one, sizeof one);
    reader_.join();
  }
  const std::lock_guard guard(lock_);
  for (int* descriptor : {&events_, &stop_}) {
    if (*descriptor >= 0) close(*descriptor);
    *descriptor = -1;
  }
  files_.clear();
  names_.clear();
}

Changes DirectoryWatch::changes_of(const std::string& file, const struct stat& status,
                                   bool others_write) {
  // Other directories, in which the file may have another name, are not watched; nor is the target
  // of a link.
  if (!is_active() || !S_ISREG(status.st_mode) || status.st_nlink != 1) return Changes::kUnnoticed;
  if (!others_write) return Changes::kNoticed;
  const std::lock_guard guard(lock_);
  const auto known = files_.find(file);
  if (known != files_.end() && known->second.inode == status.st_ino &&
      known->second.device == status.st_dev)
    return Changes::kNoticed;
  const int watch =
      inotify_add_watch(events_, path_of(directory_, file).c_str(), kOfFile | IN_DONT_FOLLOW);
  if (watch < 0) return Changes::kUnnoticed;
  files_[file] = {watch, status.st_dev, status.st_ino};
  names_[watch] = file;
  return Changes::kNoticedFromNowOn;
}

void DirectoryWatch::read_events() {
  alignas(inotify_event) char buffer[64 << 10];
  for (;;) {
    pollfd waits[] = {{events_, POLLIN, 0}, {stop_, POLLIN, 0}};
    if (poll(waits, 2, -1) < 0) continue;
    if (waits[1].revents) return;
    const ssize_t length = read(events_, buffer, sizeof buffer);
    for (ssize_t at = 0; at < length;) {
      const auto& event = *reinterpret_cast<const inotify_event*>(buffer + at);
      handle(event);
      at += static_cast<ssize_t>(sizeof event + event.len);
    }
  }
}

void DirectoryWatch::handle(const inotify_event& event) {
  FuseNodes& nodes = FuseNodes::instance();
  if (event.mask & IN_Q_OVERFLOW) return nodes.everything_changed();
  if (event.wd != whole_) return handle_file(event.wd);
  if (event.mask & (IN_DELETE_SELF | IN_IGNORED | IN_UNMOUNT)) return stop_telling();
  const std::string_view file = event.len ? event.name : "";
  if (file.empty() || !(event.mask & IN_CLOSE_WRITE)) nodes.root_changed();
  const auto name = flat_file_of(file);
  if (!name) return;
  if (event.mask & (IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO)) forget(std::string(file));
  if (event.mask & (IN_DELETE | IN_MOVED_FROM)) return nodes.gone(*name);
  nodes.changed(*name);
}

// A process has written the file, or inotify no longer watches it.
void DirectoryWatch::handle_file(int watch) {
  std::string file;
  {
    const std::lock_guard guard(lock_);
    const auto name = names_.extract(watch);
    if (name.empty()) return;
    file = name.mapped();
    const auto watched = files_.find(file);
    if (watched != files_.end() && watched->second.watch == watch) files_.erase(watched);
  }
  // Only after the entry is removed: a thread that still found the file watched had called
  // FuseNodes::keep() before, so this call also reaches the attributes that this thread reads.
  if (const auto name = flat_file_of(file)) FuseNodes::instance().changed(*name);
}

// From now on another file may have this name.
void DirectoryWatch::forget(const std::string& file) {
  const std::lock_guard guard(lock_);
  const auto watched = files_.extract(file);
  if (watched.empty()) return;
  const int watch = watched.mapped().watch;
  const auto name = names_.find(watch);
  // After a rename, the watch may already belong to the file's new name: inotify has one watch for
  // each inode.
  if (name == names_.end() || name->second != file) return;
  names_.erase(name);
  inotify_rm_watch(events_, watch);
}

// The directory was removed, or is no longer watched.
void DirectoryWatch::stop_telling() {
  active_ = false;
  FuseNodes::instance().everything_changed();
}

}  // namespace pcow::addon
