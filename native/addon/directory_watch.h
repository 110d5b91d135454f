// Watches the image directory with inotify(7), and reports to FuseNodes what other processes change
// in the directory, and in the images that this mount does not write.
//
// On filesystems that other machines change, too (NFS), inotify does not report everything. There
// the directory is not watched, and the kernel keeps no attributes.
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

  // Any thread. begin(): the session that serves the open `directory` begins. end(): it has ended.
  void begin(int directory);
  void end();

  // Any thread. Whether changes of the directory are reported.
  bool is_active() const { return active_.load(std::memory_order_relaxed); }
  // Any thread. Whether FuseNodes gets a report of each change of the attributes of `file`, which
  // is in the directory. `status`: of the name itself (lstat). `others_write`: another process may
  // write the file.
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
  std::unordered_map<int, std::string> names_;  // the files' names, by their watches
};

}  // namespace pcow::addon
