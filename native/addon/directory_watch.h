// Watches the image directory, and tells FuseNodes what other processes change in it, and in the
// images that this mount does not write (inotify(7)).
//
// On filesystems of which other machines are a part (NFS), inotify does not tell everything. There
// the directory is not watched, and the kernel keeps nothing.
#pragma once

#include <sys/inotify.h>
#include <sys/stat.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>

namespace pcow::addon {

enum class Changes { kUnnoticed, kNoticed, kNoticedFromNowOn };

class DirectoryWatch {
 public:
  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static DirectoryWatch& instance();

  // The session that serves the open `directory` begins, and has ended. Any thread.
  void begin(int directory);
  void end();

  // Any thread. Whether changes of the directory are told.
  bool is_active() const { return active_.load(std::memory_order_relaxed); }
  // Any thread. Whether FuseNodes is told of each change of the attributes of `file`, which is in
  // the directory. `status`: of the name itself, no link being followed. `others_write`: also
  // another process than this one may write the file.
  Changes changes_of(const std::string& file, const struct stat& status, bool others_write);

 private:
  struct Watched {
    int watch;
    dev_t device;
    ino_t inode;
  };

  void read_events();
  void handle(const inotify_event& event);
  void handle_file(int watch);
  void forget(const std::string& file);
  void stop_telling();

  std::atomic<bool> active_{false};
  int directory_ = -1;
  int events_ = -1;
  int stop_ = -1;   // eventfd(2)
  int whole_ = -1;  // the watch of the directory
  std::thread reader_;

  std::mutex lock_;  // guards the rest
  std::unordered_map<std::string, Watched> files_;
  std::unordered_map<int, std::string> names_;  // of the files, by their watches
};

}  // namespace pcow::addon
