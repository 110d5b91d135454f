// The names and attributes of flat files and of the mountpoint that the kernel keeps. The kernel
// may keep them until they change, because this process notifies it of each change (notifications
// of FUSE).
//
// The kernel is notified only of nodes whose attributes it may have. An answer that lets the kernel
// keep attributes is announced by keep() before the attributes are read. So the kernel is notified
// of each later change, and it does not keep an answer that was on its way at that moment.
#pragma once

#include <sys/stat.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>

namespace pcow::addon {

// Attributes of a file, and for how long the kernel may keep them.
struct KeptStatus {
  struct stat status;
  std::chrono::seconds valid{0};
};

class FuseNodes {
 public:
  static constexpr uint64_t kRoot = 1;

  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static FuseNodes& instance();

  // Any thread. begin(): the session of the descriptor begins. end(): it has ended.
  void begin(int descriptor);
  void end();

  // Exists on a thread of the loop while libfuse answers the kernel's question about the attributes
  // of `node`. On the same thread, learn() then gets the name of the flat file that libfuse found.
  class Question {
   public:
    explicit Question(uint64_t node);
    ~Question();
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;
  };
  void learn(const std::string& name);

  // Any thread. The name of the node's flat file, if that is known. The kernel may keep the
  // attributes that are read after this call.
  std::optional<std::string> keep(uint64_t node);
  // Any thread. The kernel may keep the mountpoint's attributes that are read after this call.
  void keep_root();
  // Any thread. The same as keep(), but the kernel must not keep attributes that are read now.
  std::optional<std::string> name_of(uint64_t node) const;
  // Any thread. The kernel has forgotten the node.
  void forgotten(uint64_t node);

  // Any thread; none of these functions waits for another request. The attributes of a flat file,
  // of the mountpoint, or of all files have changed.
  void changed(const std::string& name);
  void root_changed();
  void everything_changed();
  // The flat file is gone, or has another name.
  void gone(const std::string& name);

  // Any thread. The number of known nodes.
  size_t size() const;

 private:
  struct Node {
    std::string name;
    bool kept = false;
  };

  void tell_attributes(uint64_t node);
  void tell_changed(uint64_t id, Node* node);
  void tell_names();

  // Guards the members below. It is held while the kernel is notified of attributes: the kernel
  // then never waits for an answer of this process.
  mutable std::mutex lock_;
  int descriptor_ = -1;
  bool root_kept_ = false;
  uint64_t names_gone_ = 0;  // the number of calls of gone()
  std::unordered_map<uint64_t, Node> nodes_;
  std::unordered_map<std::string, uint64_t> numbers_;

  // The kernel handles a notification of a name under the lock of the directory, which it may hold
  // while it waits for an answer of this process. So only this thread sends such notifications, and
  // no request waits for the thread.
  std::thread teller_;
  std::condition_variable telling_;
  std::deque<std::string> gone_;
};

}  // namespace pcow::addon
