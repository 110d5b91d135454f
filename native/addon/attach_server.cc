#include "addon/attach_server.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <semaphore>
#include <utility>

#include "addon/attach_listener.h"
#include "engine/file.h"

namespace pcow::addon {

namespace {

using protocol::Received;

constexpr size_t kMaxConnections = 1024;
constexpr size_t kMostDescriptors = 1;       // in a message of a monitor
constexpr int64_t kFirstMessageMs = 10'000;  // for a connection to say what it wants
constexpr int64_t kRestMs = 100;             // of the listener, when descriptors have run out

constexpr uint64_t kWakeupMark = 0;
constexpr uint64_t kListenerMark = 1;

int64_t now_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

struct DescriptorInfo {
  uint64_t mount_id = 0;
  uint64_t inode = 0;
  uint32_t flags = 0;
};

// Asks the kernel alone: the file may lie in this process's own mount, which a request could wait for.
bool descriptor_info(int descriptor, DescriptorInfo* info) {
  char name[64];
  std::snprintf(name, sizeof name, "/proc/thread-self/fdinfo/%d", descriptor);
  std::FILE* file = std::fopen(name, "re");
  if (!file) return false;
  int found = 0;
  char line[256];
  while (std::fgets(line, sizeof line, file)) {
    unsigned long long value;
    if (std::sscanf(line, "mnt_id: %llu", &value) == 1) {
      info->mount_id = value;
      found |= 1;
    } else if (std::sscanf(line, "ino: %llu", &value) == 1) {
      info->inode = value;
      found |= 2;
    } else if (std::sscanf(line, "flags: %llo", &value) == 1) {
      info->flags = static_cast<uint32_t>(value);
      found |= 4;
    }
  }
  std::fclose(file);
  return found == 7;
}

// Device and inode from what the kernel has in memory: no request to a file system that might not answer.
bool identity_of(int descriptor, uint64_t* device, uint64_t* inode) {
  struct statx status;
  if (statx(descriptor, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &status) < 0) return false;
  *device = makedev(status.stx_dev_major, status.stx_dev_minor);
  *inode = status.stx_ino;
  return true;
}

// Whether the writer's lock belongs to this open file (its description), which must be open for writing. The file lies on the
// image directory's file system.
bool holds_lock(int descriptor) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  return fcntl(descriptor, F_OFD_SETLK, &lock) == 0;
}

// The image with the writer's lock where `write` says so; bases, and images to be read, without.
Result<Descriptor> open_for_handover(const std::string& path, bool write) {
  auto file = File::open(path, write, nullptr);
  if (!file) return file.error();
  if (write) {
    auto locked = (*file)->try_lock();
    if (!locked) return locked.error();
    if (!*locked) return Error(Code::kLocked, path + " is open for writing by another process: end that first");
  }
  // The lock belongs to the open file description, and goes with every duplicate.
  Descriptor descriptor(fcntl((*file)->descriptor(), F_DUPFD_CLOEXEC, 0));
  if (!descriptor) return system_error(errno, "cannot pass on " + path);
  return descriptor;
}

Packet refusal(int err, const std::string& text) {
  Packet packet;
  packet.kind = protocol::Kind::kRefused;
  packet.value = static_cast<uint32_t>(err);
  packet.text = text.substr(0, protocol::kMaxText);
  return packet;
}

void watch(int epoll, int descriptor, uint64_t mark) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = mark;
  epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

}  // namespace

struct ServerStart {
  std::shared_ptr<AttachServer> server;
  std::binary_semaphore ready{0};
  int err = 0;  // what kept the thread from starting
};

AttachServer::AttachServer(std::string path, int listener, int wakeup, Report report)
    : path_(std::move(path)), listener_(listener), wakeup_(wakeup), report_(std::move(report)) {}

Result<std::shared_ptr<AttachServer>> AttachServer::start(const std::string& path, Report report) {
  auto listener = listen_at(path);
  if (!listener) return listener.error();
  Descriptor wakeup(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup) return system_error(errno, "can't serve monitors at " + path);
  ServerStart start;
  start.server.reset(new AttachServer(path, listener->number(), wakeup.number(), std::move(report)));
  PCOW_TRY(start_thread(report_main, &start));
  start.ready.acquire();
  if (auto started = start_thread(serve_main, &start); !started) {
    start.server->stop();
    wakeup.release();
    return started.error();
  }
  start.ready.acquire();
  wakeup.release();
  if (start.err != 0) {
    start.server->stop();
    return system_error(start.err, "can't give the thread that serves monitors descriptors of its own");
  }
  return start.server;
}

// Signals are Node's to handle, on its own threads.
Result<void> AttachServer::start_thread(void* (*main)(void*), void* argument) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const int err = pthread_create(&thread, nullptr, main, argument);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (err != 0) return system_error(err, "can't start a thread that serves monitors");
  pthread_detach(thread);
  return {};
}

void* AttachServer::serve_main(void* argument) {
  auto* start = static_cast<ServerStart*>(argument);
  const std::shared_ptr<AttachServer> server = start->server;
  pthread_setname_np(pthread_self(), "pcow-attach");
  const int err = server->take_own_table();
  start->err = err;
  start->ready.release();
  if (err == 0) server->serve();
  return nullptr;
}

void* AttachServer::report_main(void* argument) {
  auto* start = static_cast<ServerStart*>(argument);
  const std::shared_ptr<AttachServer> server = start->server;
  pthread_setname_np(pthread_self(), "pcow-report");
  start->ready.release();
  server->carry_reports();
  return nullptr;
}

void AttachServer::carry_reports() {
  std::unique_lock guard(lock_);
  for (;;) {
    reported_.wait(guard, [this] { return stopped_ || !events_.empty(); });
    if (stopped_) return;
    report_(std::move(events_.front()));
    events_.pop_front();
  }
}

void AttachServer::command(AttachCommand command) {
  const std::lock_guard guard(lock_);
  if (stopped_) return;
  commands_.push_back(std::move(command));
  eventfd_write(wakeup_, 1);
}

void AttachServer::stop() {
  const std::lock_guard guard(lock_);
  if (stopped_) return;
  stopped_ = true;
  report_ = nullptr;
  unlink(path_.c_str());
  eventfd_write(wakeup_, 1);
  ::close(wakeup_);
  reported_.notify_all();
}

void AttachServer::report(AttachEvent event) {
  const std::lock_guard guard(lock_);
  events_.push_back(std::move(event));
  reported_.notify_one();
}

// Of all that the process has open, this thread keeps its own two: a copy of an image's descriptor would keep its lock.
// Returns an errno, or 0.
int AttachServer::take_own_table() {
  const auto low = static_cast<unsigned>(std::min(listener_, wakeup_));
  const auto high = static_cast<unsigned>(std::max(listener_, wakeup_));
  if (unshare(CLONE_FILES) < 0) return errno;
  if (low > 3) close_range(3, low - 1, 0);
  if (high > low + 1) close_range(low + 1, high - 1, 0);
  close_range(high + 1, ~0u, 0);
  return 0;
}

void AttachServer::serve() {
  epoll_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  watch(epoll_.number(), wakeup_, kWakeupMark);
  watch(epoll_.number(), listener_, kListenerMark);
  for (;;) {
    epoll_event events[64];
    const int count = epoll_wait(epoll_.number(), events, 64, wait_ms());
    for (int i = 0; i < count; i++) {
      const uint64_t mark = events[i].data.u64;
      if (mark == kWakeupMark) {
        eventfd_t drained;
        eventfd_read(wakeup_, &drained);
        run_commands();
      } else if (mark == kListenerMark) {
        accept_all();
      } else if (auto found = connections_.find(mark); found != connections_.end()) {
        receive(found);
      }
    }
    {
      const std::lock_guard guard(lock_);
      if (stopped_) break;
    }
    expire();
  }
  // Here, because they are this thread's alone; its table goes with it.
  connections_.clear();
  epoll_.reset();
}

// Milliseconds for epoll_wait; -1: nothing is to be given up.
int AttachServer::wait_ms() const {
  int64_t next = accept_again_ms_ == 0 ? INT64_MAX : accept_again_ms_;
  for (const auto& [id, connection] : connections_) {
    if (connection.state == State::kNew) next = std::min(next, connection.deadline_ms);
  }
  return next == INT64_MAX ? -1 : static_cast<int>(std::max<int64_t>(next - now_ms(), 0) + 1);
}

void AttachServer::expire() {
  const int64_t now = now_ms();
  for (auto at = connections_.begin(); at != connections_.end();) {
    const auto connection = at++;
    if (connection->second.state == State::kNew && connection->second.deadline_ms <= now)
      refuse(connection, ETIMEDOUT, "the mount waited ten seconds for the first message");
  }
  if (accept_again_ms_ != 0 && accept_again_ms_ <= now) {
    accept_again_ms_ = 0;
    watch(epoll_.number(), listener_, kListenerMark);
  }
}

void AttachServer::accept_all() {
  for (;;) {
    Descriptor socket(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      accept_one(std::move(socket));
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      epoll_ctl(epoll_.number(), EPOLL_CTL_DEL, listener_, nullptr);
      accept_again_ms_ = now_ms() + kRestMs;
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return;
    }
  }
}

// Who has not said what it wants gives way: ids grow, so the first of these came first.
void AttachServer::accept_one(Descriptor socket) {
  if (connections_.size() >= kMaxConnections) {
    const auto idle = std::find_if(connections_.begin(), connections_.end(),
                                   [](const auto& item) { return item.second.state == State::kNew; });
    const std::string why = "the mount has too many connections: try again later";
    if (idle == connections_.end()) {
      send_packet(socket.number(), refusal(EAGAIN, why));
      return;
    }
    refuse(idle, EAGAIN, why);
  }
  const uint64_t id = next_id_++;
  watch(epoll_.number(), socket.number(), id);
  Connection& connection = connections_[id];
  connection.socket = std::move(socket);
  connection.deadline_ms = now_ms() + kFirstMessageMs;
}

void AttachServer::receive(Connections::iterator connection) {
  Packet packet;
  std::string wrong;
  switch (receive_packet(connection->second.socket.number(), kMostDescriptors, &packet, &wrong)) {
    case Received::kNothing: return;
    case Received::kEnd: drop(connection, ""); return;
    case Received::kMalformed: break;
    case Received::kPacket:
      if (connection->second.state == State::kNew) {
        wrong = take_first(connection->first, &connection->second, &packet);
      } else {
        wrong = take_answer(connection->first, &connection->second, &packet);
      }
  }
  if (!wrong.empty()) refuse(connection, EPROTO, "the monitor sent " + wrong);
}

// What a connection wants. Returns what is wrong with the message, or "".
std::string AttachServer::take_first(uint64_t id, Connection* connection, Packet* packet) {
  const bool attach = packet->kind == protocol::Kind::kAttach;
  if (!attach && packet->kind != protocol::Kind::kResume) return "something else before kAttach or kResume";
  if (packet->value > 1 || (!attach && packet->value == 0)) return "a value that its message does not have";
  if (packet->descriptors.size() != 1) return "a message without the one descriptor that belongs to it";
  if (attach ? !packet->text.empty() : packet->text.size() != 36) return "a text that its message does not have";
  Descriptor shown = std::move(packet->descriptors.front());

  AttachEvent event;
  event.kind = attach ? AttachEvent::Kind::kAttach : AttachEvent::Kind::kResume;
  event.connection = id;
  event.wants_write = packet->value == 1;
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(connection->socket.number(), SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
    return "its message without a name: the kernel does not know the process";
  event.pid = static_cast<uint32_t>(peer.pid);
  event.uid = peer.uid;
  if (attach) {
    DescriptorInfo info;
    if (!descriptor_info(shown.number(), &info)) return "a descriptor that /proc says nothing of";
    event.mount_id = info.mount_id;
    event.inode = info.inode;
    event.flags = info.flags;
    shown.reset();
  } else {
    if (!identity_of(shown.number(), &event.device, &event.inode)) return "a descriptor that is no file";
    event.text = std::move(packet->text);
    connection->image = std::move(shown);
  }
  connection->state = State::kAsked;
  report(std::move(event));
  return "";
}

// Returns what is wrong with the message, or "".
std::string AttachServer::take_answer(uint64_t id, Connection* connection, Packet* packet) {
  if (connection->state != State::kAttached) return "a message before it was answered";
  const bool ok = packet->kind == protocol::Kind::kDone;
  if (!ok && packet->kind != protocol::Kind::kFailed) return "something else than an answer";
  if (!connection->outstanding || packet->id != connection->id) return "an answer that nobody waits for";
  if (!packet->descriptors.empty()) return "an answer with a descriptor";
  connection->outstanding = false;
  AttachEvent event;
  event.kind = AttachEvent::Kind::kAnswer;
  event.connection = id;
  event.id = packet->id;
  event.ok = ok;
  // Whatever a monitor sends, it becomes an errno that there is.
  event.err = ok ? 0 : packet->value > 0 && packet->value < 4096 ? static_cast<int>(packet->value) : EIO;
  event.text = std::move(packet->text);
  report(std::move(event));
  return "";
}

void AttachServer::run_commands() {
  std::deque<AttachCommand> commands;
  {
    const std::lock_guard guard(lock_);
    commands.swap(commands_);
  }
  for (const AttachCommand& command : commands) run(command);
}

void AttachServer::run(const AttachCommand& command) {
  const auto connection = connections_.find(command.connection);
  if (connection == connections_.end()) return;
  switch (command.kind) {
    case AttachCommand::Kind::kHandOver: hand_over(connection, command); return;
    case AttachCommand::Kind::kConfirm: confirm(connection); return;
    case AttachCommand::Kind::kRefuse: refuse(connection, command.err, command.text); return;
    case AttachCommand::Kind::kClose: drop(connection, command.text); return;
    case AttachCommand::Kind::kRequest: {
      Packet packet;
      packet.kind = command.request;
      packet.id = command.id;
      packet.value = command.value;
      packet.text = command.text;
      connection->second.outstanding = true;
      connection->second.id = command.id;
      if (!send_packet(connection->second.socket.number(), packet)) drop(connection, "it takes no messages");
    }
  }
}

// The descriptors are closed here as soon as they are sent: the lock is the monitor's alone then.
void AttachServer::hand_over(Connections::iterator connection, const AttachCommand& command) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kHandedOver;
  event.connection = connection->first;
  Packet packet;
  packet.kind = protocol::Kind::kAttached;
  for (const std::string& path : command.paths) {
    auto opened = open_for_handover(path, command.write && packet.descriptors.empty());
    if (!opened) {
      event.err = opened.error().err;
      event.text = opened.error().message;
      report(std::move(event));
      refuse(connection, opened.error().err, opened.error().message);
      return;
    }
    packet.descriptors.push_back(std::move(*opened));
    packet.text += path;
    packet.text += '\0';
  }
  event.ok = packet.text.size() <= protocol::kMaxText && send_packet(connection->second.socket.number(), packet);
  connection->second.state = State::kAttached;
  if (!event.ok) {
    event.err = EPIPE;
    event.text = "the process did not take the image";
  }
  const bool ok = event.ok;
  report(std::move(event));
  if (!ok) drop(connection, "");
}

void AttachServer::confirm(Connections::iterator connection) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kHandedOver;
  event.connection = connection->first;
  Packet packet;
  packet.kind = protocol::Kind::kAttached;
  if (!holds_lock(connection->second.image.number())) {
    event.err = EBUSY;
    event.text = "the descriptor does not carry the writer's lock of the image";
  } else if (!send_packet(connection->second.socket.number(), packet)) {
    event.err = EPIPE;
    event.text = "the process did not take the answer";
  }
  connection->second.image.reset();
  connection->second.state = State::kAttached;
  event.ok = event.err == 0;
  const AttachEvent outcome = event;
  report(std::move(event));
  if (!outcome.ok) refuse(connection, outcome.err, outcome.text);
}

void AttachServer::refuse(Connections::iterator connection, int err, const std::string& text) {
  send_packet(connection->second.socket.number(), refusal(err, text));
  drop(connection, text);
}

void AttachServer::drop(Connections::iterator connection, const std::string& why) {
  if (connection->second.state != State::kNew) {
    AttachEvent event;
    event.kind = AttachEvent::Kind::kClosed;
    event.connection = connection->first;
    event.text = why;
    report(std::move(event));
  }
  connections_.erase(connection);
}

}  // namespace pcow::addon
