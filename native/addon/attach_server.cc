// The file is longer than others, because it holds one state machine: each state of a connection,
// and what leads out of it.
#include "addon/attach_server.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <semaphore>
#include <utility>

#include "addon/attach_files.h"
#include "addon/attach_listener.h"
#include "attach/clock.h"
#include "engine/disk/bus_guard.h"

namespace pcow::addon {

namespace {

using protocol::Received;

constexpr size_t kMaxConnections = 1024;
// Of one connection, that wait for their answers (kMostFetches in monitor/fetches.cc).
constexpr size_t kMostFetches = 64;
constexpr size_t kLongestFetch = 4400;       // bytes: a path, and numbers
constexpr int64_t kFirstMessageMs = 10'000;  // how long a connection may take to send a request
constexpr int64_t kLastMessageMs = 10'000;   // how long it may take to close after kReleased
// how long the listener is not polled when descriptors have run out
constexpr int64_t kRestMs = 100;

constexpr uint64_t kWakeupMark = 0;
constexpr uint64_t kListenerMark = 1;

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
  int err = 0;  // why the thread could not start
};

AttachServer::AttachServer(std::string path, uint64_t store_budget, int listener, int wakeup,
                           Report report)
    : path_(std::move(path)),
      store_budget_(store_budget),
      listener_(listener),
      wakeup_(wakeup),
      report_(std::move(report)) {}

Result<std::shared_ptr<AttachServer>> AttachServer::start(const std::string& path,
                                                          uint64_t store_budget, Report report) {
  auto listener = listen_at(path);
  if (!listener) return listener.error();
  Descriptor wakeup(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup) return system_error(errno, "can't serve monitors at " + path);
  ServerStart start;
  start.server.reset(
      new AttachServer(path, store_budget, listener->number(), wakeup.number(), std::move(report)));
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
    return system_error(start.err,
                        "cannot give the thread that serves monitors its own table of descriptors");
  }
  return start.server;
}

// With signals blocked: Node handles signals, on its own threads.
Result<void> AttachServer::start_thread(void* (*main)(void*), void* argument) {
  const SignalsHeld held;
  pthread_t thread;
  const int err = pthread_create(&thread, nullptr, main, argument);
  if (err != 0) return system_error(err, "can't start a thread that serves monitors");
  pthread_detach(thread);
  return {};
}

void* AttachServer::serve_main(void* argument) {
  auto* start = static_cast<ServerStart*>(argument);
  const std::shared_ptr<AttachServer> server = start->server;
  pthread_setname_np(pthread_self(), "pcow-attach");
  const int err = server->unshare_descriptors();
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

// This thread closes everything that the process has open except its own two descriptors: a copy of
// an image's descriptor would keep the image's lock. Returns an errno, or 0.
int AttachServer::unshare_descriptors() {
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
  start_store();
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
        (void)receive(found);
      }
    }
    {
      const std::lock_guard guard(lock_);
      if (stopped_) break;
    }
    expire();
  }
  {
    std::unique_lock guard(lock_);
    const auto ending = std::move(store_);
    guard.unlock();  // its thread may be reporting
  }
  answers_.clear();
  // Close them here: they exist only in this thread's table, which ends with the thread.
  for (auto& [id, connection] : connections_) {
    closer_.close(std::move(connection.socket), connection.uid);
    closer_.close(std::move(connection.image), connection.uid);
  }
  connections_.clear();
  epoll_.reset();
  ::close(wakeup_);
  ::close(listener_);  // last: it may still contain files that other processes have sent
}

// Milliseconds for epoll_wait; -1: no connection has a deadline.
int AttachServer::wait_ms() const {
  int64_t next = accept_again_ms_ == 0 ? INT64_MAX : accept_again_ms_;
  for (const auto& [id, connection] : connections_) {
    if (connection.state == State::kNew || connection.state == State::kReleased)
      next = std::min(next, connection.deadline_ms);
  }
  return next == INT64_MAX ? -1 : static_cast<int>(std::max<int64_t>(next - monotonic_ms(), 0) + 1);
}

void AttachServer::expire() {
  const int64_t now = monotonic_ms();
  for (auto at = connections_.begin(); at != connections_.end();) {
    const auto connection = at++;
    if (connection->second.deadline_ms > now) continue;
    if (connection->second.state == State::kNew)
      refuse(connection, ETIMEDOUT, "the mount waited ten seconds for the first message");
    else if (connection->second.state == State::kReleased)
      drop(connection, "it did not close the connection");
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
      accept_again_ms_ = monotonic_ms() + kRestMs;
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return;
    }
  }
}

// If there are too many connections, the oldest one that has not sent its first message is refused:
// ids grow.
void AttachServer::accept_one(Descriptor socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(socket.number(), SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
    peer = {0, ~0u, ~0u};
  if (closer_.refuses(peer.uid)) {
    send_packet(
        socket.number(),
        refusal(EAGAIN,
                "closing the files that this user has sent takes too long: try again later"));
    closer_.close(std::move(socket), peer.uid);
    return;
  }
  if (connections_.size() >= kMaxConnections) {
    const auto idle = std::find_if(connections_.begin(), connections_.end(), [](const auto& item) {
      return item.second.state == State::kNew;
    });
    const std::string why = "the mount has too many connections: try again later";
    if (idle == connections_.end()) {
      send_packet(socket.number(), refusal(EAGAIN, why));
      closer_.close(std::move(socket), peer.uid);
      return;
    }
    refuse(idle, EAGAIN, why);
  }
  const uint64_t id = next_id_++;
  watch(epoll_.number(), socket.number(), id);
  Connection& connection = connections_[id];
  connection.socket = std::move(socket);
  connection.pid = static_cast<uint32_t>(peer.pid);
  connection.uid = peer.uid;
  connection.deadline_ms = monotonic_ms() + kFirstMessageMs;
}

// Returns whether there was a message, and there may be more. Up to the kernel's limit of
// descriptors are taken: the kernel itself closes those that do not fit, on this thread, which may
// block.
bool AttachServer::receive(Connections::iterator connection) {
  const uint32_t uid = connection->second.uid;
  Packet packet;
  std::string wrong;
  const auto received = receive_packet(connection->second.socket.number(),
                                       protocol::kMaxDescriptors, &packet, &wrong);
  if (received == Received::kPacket) wrong = take(connection->first, &connection->second, &packet);
  for (Descriptor& descriptor : packet.descriptors) closer_.close(std::move(descriptor), uid);
  if (received == Received::kNothing) return false;
  if (received == Received::kEnd) {
    drop(connection, "");
  } else if (!wrong.empty()) {
    refuse(connection, EPROTO, "the monitor sent " + wrong);
  }
  return received == Received::kPacket && wrong.empty();
}

// Returns what is wrong with the message, or "". The caller closes the descriptors that are left in
// the packet.
std::string AttachServer::take(uint64_t id, Connection* connection, Packet* packet) {
  if (connection->state == State::kNew) return take_first(id, connection, packet);
  if (packet->kind == protocol::Kind::kRelease) return take_release(id, connection, *packet);
  if (packet->kind == protocol::Kind::kWant) return take_want(id, connection, *packet);
  if (packet->kind == protocol::Kind::kWantShared) return take_want_shared(id, connection, *packet);
  if (packet->kind == protocol::Kind::kFetch) return take_fetch(id, connection, packet);
  return take_answer(id, connection, packet);
}

// Handles the first message of a connection. Returns what is wrong with it, or "".
std::string AttachServer::take_first(uint64_t id, Connection* connection, Packet* packet) {
  const bool attach = packet->kind == protocol::Kind::kAttach;
  if (!attach && packet->kind != protocol::Kind::kResume)
    return "another message before kAttach or kResume";
  if (packet->value > 1 || (!attach && packet->value == 0))
    return "a value that its kind of message may not have";
  if (packet->descriptors.size() != 1) return "a message that does not have exactly one descriptor";
  if (attach ? !packet->text.empty() : packet->text.size() != 36)
    return "a text that its kind of message may not have";
  const int shown = packet->descriptors.front().number();

  AttachEvent event;
  event.kind = attach ? AttachEvent::Kind::kAttach : AttachEvent::Kind::kResume;
  event.connection = id;
  event.wants_write = packet->value == 1;
  event.pid = connection->pid;
  event.uid = connection->uid;
  if (!identity_of(shown, &event.device, &event.inode)) return "a descriptor that is not a file";
  if (attach) {
    const int flags = fcntl(shown, F_GETFL);
    if (flags < 0) return "a descriptor that is not a file";
    event.flags = static_cast<uint32_t>(flags);
  } else {
    event.text = std::move(packet->text);
    connection->image = std::move(packet->descriptors.front());
  }
  connection->state = State::kAsked;
  report(std::move(event));
  return "";
}

// Returns what is wrong with the message, or "".
std::string AttachServer::take_answer(uint64_t id, Connection* connection, Packet* packet) {
  const bool over = connection->state == State::kReleasing || connection->state == State::kReleased;
  if (!over && connection->state != State::kAttached) return "a message before the mount's answer";
  const bool ok = packet->kind == protocol::Kind::kDone;
  if (!ok && packet->kind != protocol::Kind::kFailed) return "a message that is not an answer";
  if (!packet->descriptors.empty()) return "an answer with a descriptor";
  if (over && packet->id == connection->late_id && packet->id != 0) {
    connection->late_id = 0;
    return "";
  }
  if (!connection->outstanding || packet->id != connection->id) return "an answer to no request";
  connection->outstanding = false;
  AttachEvent event;
  event.kind = AttachEvent::Kind::kAnswer;
  event.connection = id;
  event.id = packet->id;
  event.ok = ok;
  // Whatever a monitor sends is turned into a valid errno.
  event.err = ok                                          ? 0
              : packet->value > 0 && packet->value < 4096 ? static_cast<int>(packet->value)
                                                          : EIO;
  event.text = std::move(packet->text);
  report(std::move(event));
  return "";
}

// However often the monitor asks, there is one question at a time.
std::string AttachServer::take_want(uint64_t id, Connection* connection, const Packet& packet) {
  if (connection->state != State::kAttached) return "kWant without an image";
  if (packet.id != 0 || packet.value != 0 || !packet.text.empty() || !packet.descriptors.empty())
    return "kWant with unexpected contents";
  if (std::exchange(connection->wants, true)) return "";
  AttachEvent event;
  event.kind = AttachEvent::Kind::kWant;
  event.connection = id;
  report(std::move(event));
  return "";
}

// The store ignores it if too many wait.
std::string AttachServer::take_want_shared(uint64_t id, Connection* connection,
                                           const Packet& packet) {
  if (connection->state != State::kAttached || !connection->shares)
    return "kWantShared without a store";
  uint32_t count;
  const char* end = packet.text.data() + packet.text.size();
  const auto parsed = std::from_chars(packet.text.data(), end, count);
  if (packet.id != 0 || parsed.ec != std::errc() || parsed.ptr != end || count > segment::kSlices ||
      !packet.descriptors.empty())
    return "kWantShared with unexpected contents";
  store_->want(id, packet.value, count);
  return "";
}

// Returns what is wrong with the message, or "".
std::string AttachServer::take_fetch(uint64_t id, Connection* connection, Packet* packet) {
  if (connection->state != State::kAttached || !connection->fetches)
    return "kFetch without kMayFetch";
  if (packet->id != 0 || packet->value == 0 || packet->text.empty() ||
      packet->text.size() > kLongestFetch || !packet->descriptors.empty())
    return "kFetch with unexpected contents";
  if (connection->fetching.size() >= kMostFetches ||
      !connection->fetching.insert(packet->value).second)
    return "too many kFetch, or one twice";
  AttachEvent event;
  event.kind = AttachEvent::Kind::kFetch;
  event.connection = id;
  event.id = packet->value;
  event.text = std::move(packet->text);
  report(std::move(event));
  return "";
}

// A request in progress fails: the monitor has closed the image, perhaps before it read the
// request.
std::string AttachServer::take_release(uint64_t id, Connection* connection, const Packet& packet) {
  if (connection->state != State::kAttached) return "kRelease without an image";
  if (packet.id != 0 || packet.value != 0 || !packet.text.empty() || !packet.descriptors.empty())
    return "kRelease with unexpected contents";
  connection->state = State::kReleasing;
  AttachEvent event;
  event.kind = AttachEvent::Kind::kRelease;
  event.connection = id;
  report(std::move(event));
  if (connection->outstanding) {
    connection->outstanding = false;
    connection->late_id = connection->id;
    report_shut_down(id, connection->id);
  }
  return "";
}

void AttachServer::report_shut_down(uint64_t id, uint32_t request) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kAnswer;
  event.connection = id;
  event.id = request;
  event.err = ESHUTDOWN;
  event.text = "the process has released the image";
  report(std::move(event));
}

void AttachServer::run_commands() {
  std::deque<AttachCommand> commands;
  std::deque<CleanStore::Answer> answers;
  {
    const std::lock_guard guard(lock_);
    commands.swap(commands_);
    answers.swap(answers_);
  }
  for (const AttachCommand& command : commands) run(command);
  for (CleanStore::Answer& answer : answers) pass_on(std::move(answer));
}

void AttachServer::look(const AttachCommand& command) {
  for (;;) {
    const auto connection = connections_.find(command.connection);
    if (connection == connections_.end() || !receive(connection)) break;
  }
  AttachEvent event;
  event.kind = AttachEvent::Kind::kLooked;
  event.connection = command.connection;
  event.id = command.id;
  report(std::move(event));
}

void AttachServer::run(const AttachCommand& command) {
  if (command.kind == AttachCommand::Kind::kLook) {
    look(command);
    return;
  }
  const auto connection = connections_.find(command.connection);
  if (connection == connections_.end()) return;
  switch (command.kind) {
    case AttachCommand::Kind::kHandOver: hand_over(connection, command); return;
    case AttachCommand::Kind::kConfirm: confirm(connection); return;
    case AttachCommand::Kind::kRefuse: refuse(connection, command.err, command.text); return;
    case AttachCommand::Kind::kClose: drop(connection, command.text); return;
    case AttachCommand::Kind::kRequest: request(connection, command); return;
    case AttachCommand::Kind::kGiveBases: give_bases(connection, command); return;
    case AttachCommand::Kind::kShare: share(connection, command); return;
    case AttachCommand::Kind::kFetched: fetched(connection, command); return;
    case AttachCommand::Kind::kReleased: released(connection); return;
    case AttachCommand::Kind::kLook: return;
  }
}

void AttachServer::request(Connections::iterator connection, const AttachCommand& command) {
  if (connection->second.state != State::kAttached) {
    report_shut_down(connection->first, command.id);
    return;
  }
  Packet packet;
  packet.kind = command.request;
  packet.id = command.id;
  packet.value = command.value;
  packet.text = command.text;
  if (command.request == protocol::Kind::kMayFetch) connection->second.fetches = true;
  if (command.request == protocol::Kind::kStore) connection->second.shares = true;
  send_request(connection, std::move(packet));
}

void AttachServer::send_request(Connections::iterator connection, Packet packet) {
  connection->second.outstanding = true;
  connection->second.id = packet.id;
  if (!send_packet(connection->second.socket.number(), packet))
    drop(connection, "it does not read its messages");
}

void AttachServer::fail_request(uint64_t id, uint32_t request, const Error& error) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kAnswer;
  event.connection = id;
  event.id = request;
  event.err = error.err;
  event.text = error.message;
  report(std::move(event));
}

// A request like any other, except for its descriptors. If a file cannot be opened, nothing is
// sent, and the answer reports this.
void AttachServer::give_bases(Connections::iterator connection, const AttachCommand& command) {
  connection->second.wants = false;
  if (command.paths.empty()) return;
  if (connection->second.state != State::kAttached) {
    report_shut_down(connection->first, command.id);
    return;
  }
  Packet packet;
  packet.kind = protocol::Kind::kBases;
  packet.id = command.id;
  Result<void> outcome = add_files(&packet, command.paths, false);
  if (outcome && packet.text.size() > protocol::kMaxText)
    outcome = Error(Code::kTooLarge, "the paths of the bases are too long to be sent");
  if (outcome)
    send_request(connection, std::move(packet));
  else
    fail_request(connection->first, command.id, outcome.error());
}

// On this thread, whose table of descriptors the store's thread gets: the segments are sent from
// here.
void AttachServer::start_store() {
  if (store_budget_ == 0) return;
  auto started = CleanStore::start(store_budget_, [this](CleanStore::Answer answer) {
    const std::lock_guard guard(lock_);
    if (stopped_) return;
    answers_.push_back(std::move(answer));
    eventfd_write(wakeup_, 1);
  });
  const std::lock_guard guard(lock_);
  if (started) store_ = std::move(*started);
}

CleanStore::Figures AttachServer::store_figures() {
  const std::lock_guard guard(lock_);
  return store_ ? store_->figures() : CleanStore::Figures{};
}

// The store opens the layer. Its disk may hang, so this is no request: requests of the connection
// go on meanwhile.
void AttachServer::share(Connections::iterator connection, const AttachCommand& command) {
  if (store_) {
    store_->open(connection->first, command.layer);
    return;
  }
  CleanStore::Answer answer;
  answer.client = connection->first;
  answer.error = Error(Code::kUnsupported, EOPNOTSUPP, "the mount has no clean store");
  report_opened(answer);
}

void AttachServer::report_opened(const CleanStore::Answer& answer) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kOpened;
  event.connection = answer.client;
  event.ok = answer.ok;
  event.err = answer.ok ? 0 : answer.error.err;
  event.text = answer.ok ? std::to_string(answer.size) : answer.error.message;
  report(std::move(event));
}

void AttachServer::pass_on(CleanStore::Answer answer) {
  const auto connection = connections_.find(answer.client);
  if (connection == connections_.end()) return;
  if (answer.kind == CleanStore::Answer::Kind::kOpened) {
    report_opened(answer);
    return;
  }
  if (connection->second.state != State::kAttached) return;
  Packet packet;
  packet.kind = protocol::Kind::kShared;
  packet.value = answer.slice;
  if (answer.segment) packet.descriptors.push_back(std::move(answer.segment));
  // A monitor that does not read it now makes copies of its own, and asks again.
  if (!send_packet(connection->second.socket.number(), packet) && !packet.descriptors.empty())
    store_->take_back(answer.client, answer.slice);
}

// If a monitor does not read it, its connection ends, and it asks the next mount.
void AttachServer::fetched(Connections::iterator connection, const AttachCommand& command) {
  if (connection->second.fetching.erase(command.id) == 0 ||
      connection->second.state != State::kAttached)
    return;
  Packet packet;
  packet.kind = protocol::Kind::kFetched;
  packet.value = command.id;
  packet.text = command.text.substr(0, protocol::kMaxText);
  if (!send_packet(connection->second.socket.number(), packet))
    drop(connection, "it does not read its messages");
}

// The monitor ends the connection. If this side did, and a late answer was still unread, the kernel
// would discard the message.
void AttachServer::released(Connections::iterator connection) {
  if (connection->second.state != State::kReleasing) return;
  Packet packet;
  packet.kind = protocol::Kind::kReleased;
  connection->second.state = State::kReleased;
  connection->second.deadline_ms = monotonic_ms() + kLastMessageMs;
  if (!send_packet(connection->second.socket.number(), packet)) drop(connection, "");
}

// The descriptors are closed here as soon as they have been sent. Then only the monitor holds the
// lock.
void AttachServer::hand_over(Connections::iterator connection, const AttachCommand& command) {
  AttachEvent event;
  event.kind = AttachEvent::Kind::kHandedOver;
  event.connection = connection->first;
  Packet packet;
  packet.kind = protocol::Kind::kAttached;
  packet.value = protocol::kMayWant;
  if (auto added = add_files(&packet, command.paths, command.write); !added) {
    event.err = added.error().err;
    event.text = added.error().message;
    report(std::move(event));
    refuse(connection, added.error().err, added.error().message);
    return;
  }
  event.ok = packet.text.size() <= protocol::kMaxText &&
             send_packet(connection->second.socket.number(), packet);
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
  packet.value = protocol::kMayWant;
  if (!holds_lock(connection->second.image.number())) {
    event.err = EBUSY;
    event.text = "the descriptor does not carry the writer's lock of the image";
  } else if (!send_packet(connection->second.socket.number(), packet)) {
    event.err = EPIPE;
    event.text = "the process did not take the answer";
  }
  closer_.close(std::move(connection->second.image), connection->second.uid);
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
  if (store_) store_->forget(connection->first);
  epoll_ctl(epoll_.number(), EPOLL_CTL_DEL, connection->second.socket.number(), nullptr);
  closer_.close(std::move(connection->second.socket), connection->second.uid);
  closer_.close(std::move(connection->second.image), connection->second.uid);
  connections_.erase(connection);
}

}  // namespace pcow::addon
