#include "addon/fuse_nodes.h"

#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

#include <utility>

#include "engine/disk/bus_guard.h"

namespace pcow::addon {

namespace {

// The node of the question that libfuse answers on this thread; 0: none.
thread_local uint64_t asked_node = 0;
thread_local uint64_t asked_at = 0;  // names_gone_ when it was asked

// Errors are ignored: the kernel may not know the node or the name (ENOENT), or the session may
// have ended.
void notify(int descriptor, int32_t code, const void* what, size_t length, const char* name,
            size_t name_length) {
  fuse_out_header header = {};
  header.len = static_cast<uint32_t>(sizeof header + length + name_length);
  header.error = code;
  const iovec parts[] = {{&header, sizeof header},
                         {const_cast<void*>(what), length},
                         {const_cast<char*>(name), name_length}};
  (void)!writev(descriptor, parts, name_length ? 3 : 2);
}

}  // namespace

FuseNodes& FuseNodes::instance() {
  static FuseNodes& nodes = *new FuseNodes();
  return nodes;
}

void FuseNodes::begin(int descriptor) {
  // The new thread must not handle signals: they are for the program's own threads.
  const SignalsHeld held;
  const std::lock_guard guard(lock_);
  descriptor_ = descriptor;
  teller_ = std::thread([this] { tell_names(); });
}

void FuseNodes::end() {
  {
    const std::lock_guard guard(lock_);
    descriptor_ = -1;
    nodes_.clear();
    numbers_.clear();
    gone_.clear();
  }
  telling_.notify_all();
  if (teller_.joinable()) teller_.join();
}

FuseNodes::Question::Question(uint64_t node) {
  FuseNodes& nodes = instance();
  const std::lock_guard guard(nodes.lock_);
  asked_node = node;
  asked_at = nodes.names_gone_;
}

FuseNodes::Question::~Question() { asked_node = 0; }

void FuseNodes::learn(const std::string& name) {
  if (asked_node == 0) return;
  const std::lock_guard guard(lock_);
  // If a name has gone since the question, libfuse may have found the node by that name.
  if (asked_at != names_gone_ || descriptor_ < 0) return;
  if (const auto other = numbers_.find(name);
      other != numbers_.end() && other->second != asked_node) {
    const auto node = nodes_.extract(other->second);
    if (node.mapped().kept) tell_attributes(node.key());
  }
  numbers_[name] = asked_node;
  nodes_[asked_node].name = name;
}

std::optional<std::string> FuseNodes::keep(uint64_t id) {
  const std::lock_guard guard(lock_);
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return std::nullopt;
  node->second.kept = true;
  return node->second.name;
}

void FuseNodes::keep_root() {
  const std::lock_guard guard(lock_);
  root_kept_ = true;
}

std::optional<std::string> FuseNodes::name_of(uint64_t id) const {
  const std::lock_guard guard(lock_);
  const auto node = nodes_.find(id);
  if (node == nodes_.end()) return std::nullopt;
  return node->second.name;
}

void FuseNodes::forgotten(uint64_t id) {
  const std::lock_guard guard(lock_);
  const auto node = nodes_.extract(id);
  if (node.empty()) return;
  numbers_.erase(node.mapped().name);
  // The kernel may have asked for the attributes of this node again since it sent the request.
  if (node.mapped().kept) tell_attributes(id);
}

void FuseNodes::changed(const std::string& name) {
  const std::lock_guard guard(lock_);
  const auto number = numbers_.find(name);
  if (number != numbers_.end()) tell_changed(number->second, &nodes_[number->second]);
}

void FuseNodes::root_changed() {
  const std::lock_guard guard(lock_);
  if (std::exchange(root_kept_, false)) tell_attributes(kRoot);
}

void FuseNodes::everything_changed() {
  const std::lock_guard guard(lock_);
  if (std::exchange(root_kept_, false)) tell_attributes(kRoot);
  for (auto& [id, node] : nodes_) tell_changed(id, &node);
}

void FuseNodes::gone(const std::string& name) {
  {
    const std::lock_guard guard(lock_);
    names_gone_++;
    if (descriptor_ < 0) return;
    if (const auto number = numbers_.extract(name); !number.empty()) {
      const auto node = nodes_.extract(number.mapped());
      if (node.mapped().kept) tell_attributes(node.key());
    }
    gone_.push_back(name);
  }
  telling_.notify_one();
}

size_t FuseNodes::size() const {
  const std::lock_guard guard(lock_);
  return nodes_.size();
}

// lock_ is held.
void FuseNodes::tell_changed(uint64_t id, Node* node) {
  if (std::exchange(node->kept, false)) tell_attributes(id);
}

// lock_ is held. The offset of -1 lets the kernel keep its pages of the file.
void FuseNodes::tell_attributes(uint64_t node) {
  if (descriptor_ < 0) return;
  fuse_notify_inval_inode_out what = {};
  what.ino = node;
  what.off = -1;
  notify(descriptor_, FUSE_NOTIFY_INVAL_INODE, &what, sizeof what, nullptr, 0);
}

void FuseNodes::tell_names() {
  std::unique_lock guard(lock_);
  for (;;) {
    telling_.wait(guard, [this] { return descriptor_ < 0 || !gone_.empty(); });
    if (descriptor_ < 0) return;
    const std::string name = std::move(gone_.front());
    gone_.pop_front();
    const int descriptor = descriptor_;
    guard.unlock();
    fuse_notify_inval_entry_out what = {};
    what.parent = kRoot;
    what.namelen = static_cast<uint32_t>(name.size());
    notify(descriptor, FUSE_NOTIFY_INVAL_ENTRY, &what, sizeof what, name.c_str(), name.size() + 1);
    guard.lock();
  }
}

}  // namespace pcow::addon
