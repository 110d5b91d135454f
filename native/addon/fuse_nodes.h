// What the kernel keeps of the flat files and of the mountpoint: attributes, and names. The kernel
// may keep them as long as nothing changes, because it is told of each change (notifications of
// FUSE).
//
// Only nodes are told whose attributes the kernel may have: an answer that lets the kernel keep
// them is announced by keep() before the attributes are read. So a change after that is told, and
// the kernel does not keep an answer that was on its way when it was told.
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

  // The session of the descriptor begins, and has ended. Any thread.
  void begin(int descriptor);
  void end();

  // A thread of the loop: libfuse is about to answer the kernel's question about the attributes of
  // `node`. Then learn() with the name of the flat file that it found, on the same thread.
  class Question {
   public:
    explicit Question(uint64_t node);
    ~Question();
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;
  };
  void learn(const std::string& name);

  // Any thread. The flat file that the node is, if that is known. The kernel may keep the
  // attributes that are read after this call.
  std::optional<std::string> keep(uint64_t node);
  // Any thread. The same for the mountpoint.
  void keep_root();
  // Any thread. The same as keep(), but the kernel keeps nothing of it.
  std::optional<std::string> name_of(uint64_t node) const;
  // Any thread. The kernel has forgotten the node.
  void forgotten(uint64_t node);

  // Any thread: none of these waits for the kernel. The attributes of a flat file, of the
  // mountpoint, or of all files have changed.
  void changed(const std::string& name);
  void root_changed();
  void everything_changed();
  // The flat file is gone, or has another name.
  void gone(const std::string& name);

  // Any thread. How many nodes are known.
  size_t size() const;

 private:
  struct Node {
    std::string name;
    bool kept = false;
  };

  void tell_attributes(uint64_t node);
  void tell_changed(uint64_t id, Node* node);
  void tell_names();

  // Guards the members below. Held while the kernel is told of attributes, which never waits for an
  // answer of this process.
  mutable std::mutex lock_;
  int descriptor_ = -1;
  bool root_kept_ = false;
  uint64_t names_gone_ = 0;  // how often a name has become wrong
  std::unordered_map<uint64_t, Node> nodes_;
  std::unordered_map<std::string, uint64_t> numbers_;

  // To tell of a name, the kernel takes the lock of the directory, which it may hold while it waits
  // for an answer of this process. So only this thread tells it, and nothing waits for the thread.
  std::thread teller_;
  std::condition_variable telling_;
  std::deque<std::string> gone_;
};

}  // namespace pcow::addon
