#include "monitor/attachment.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "attach/clock.h"
#include "monitor/log.h"

namespace pcow {
namespace {

using protocol::Descriptor;
using protocol::Kind;
using protocol::Packet;
using protocol::Received;

constexpr int kReconnectMs = 200;
constexpr int64_t kWantAgainMs = 1000;

// Waits until `socket` is readable. Returns false after `patience_ms`, or if `stop` becomes
// readable first (-1: there is no `stop`).
bool await_packet(int socket, int stop, int patience_ms) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(patience_ms);
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
    struct pollfd ready[] = {{socket, POLLIN, 0}, {stop, POLLIN, 0}};
    const int count = poll(ready, 2, static_cast<int>(std::max<int64_t>(left, 0)));
    if (count < 0 && errno == EINTR) continue;  // the application got a signal
    return count > 0 && ready[0].revents;
  }
}

// If the mount does not accept connections, connect(2) blocks: at most for this time.
Result<Descriptor> connect_to(const std::string& path, int patience_ms) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return system_error(ENAMETOOLONG, path);
  memcpy(address.sun_path, path.data(), path.size());
  Descriptor made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const timeval limit = {patience_ms / 1000, patience_ms % 1000 * 1000};
  if (!made || setsockopt(made.number(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
    return system_error(errno, "cannot make a socket");
  int outcome;
  do {
    outcome = connect(made.number(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  } while (outcome < 0 && errno == EINTR);
  if (outcome < 0) return system_error(errno, "cannot connect to the mount at " + path);
  return made;
}

// Sends a request that carries one descriptor.
Result<void> send_request(int socket, Kind kind, uint32_t value, const std::string& text,
                          int descriptor) {
  Packet request;
  request.kind = kind;
  request.value = value;
  request.text = text;
  request.descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  if (!request.descriptors.front() || !protocol::send_packet(socket, request))
    return system_error(errno, "cannot send a request to the mount");
  return {};
}

// Waits for the answer, unless `stop` becomes readable first: a silent mount must not keep a
// process from exiting.
Result<Packet> receive_answer(int socket, int stop, int patience_ms) {
  if (!await_packet(socket, stop, patience_ms))
    return Error(Code::kIo, ETIMEDOUT, "the mount does not answer");
  Packet answer;
  std::string reason;
  const Received received =
      protocol::receive_packet(socket, protocol::kMaxDescriptors, &answer, &reason);
  if (received == Received::kEnd || received == Received::kNothing)
    return Error(Code::kIo, EPROTO,
                 "the mount ended before it answered: mount the image's directory again");
  if (received != Received::kPacket)
    return Error(Code::kIo, EPROTO, "the mount answered with " + reason);
  if (answer.kind == Kind::kRefused) {
    const bool is_errno = answer.value > 0 && answer.value < 4096;
    Error refused = system_error(is_errno ? static_cast<int>(answer.value) : EPROTO, "");
    refused.message = answer.text;
    return refused;
  }
  if (answer.kind != Kind::kAttached)
    return Error(Code::kIo, EPROTO, "the mount sent an unexpected answer");
  return answer;
}

Packet done(const Packet& request, std::string text = {}) {
  Packet answer;
  answer.kind = Kind::kDone;
  answer.id = request.id;
  answer.text = std::move(text);
  return answer;
}

// The descriptors of a message with their paths. The packet still owns the descriptors.
Result<std::vector<GivenFile>> files_of(const Packet& packet) {
  std::vector<GivenFile> files;
  const char* path = packet.text.c_str();
  for (const Descriptor& descriptor : packet.descriptors) {
    if (path >= packet.text.c_str() + packet.text.size())
      return Error(Code::kIo, EPROTO, "the mount handed over more descriptors than paths");
    files.push_back({path, descriptor.number()});
    path += files.back().path.size() + 1;
  }
  return files;
}

Packet failed(const Packet& request, const Error& error) {
  Packet answer;
  answer.kind = Kind::kFailed;
  answer.id = request.id;
  answer.value = static_cast<uint32_t>(error.err);
  answer.text = error.message.substr(0, protocol::kMaxText);
  return answer;
}

}  // namespace

Result<std::shared_ptr<Attachment>> Attachment::attach(const std::string& socket_path,
                                                       int flat_file, bool write, uint64_t layer,
                                                       const Session::Limits& limits,
                                                       const Patience& patience) {
  auto socket = connect_to(socket_path, patience.answer_ms);
  if (!socket) return socket.error();
  PCOW_TRY(send_request(socket->number(), Kind::kAttach, write ? 1 : 0, "", flat_file));
  auto answer = receive_answer(socket->number(), -1, patience.answer_ms);
  if (!answer) return answer.error();

  OpenOptions options;
  options.write = write;
  auto files = files_of(*answer);
  if (!files) return files.error();
  options.given = std::move(*files);
  if (options.given.empty()) return Error(Code::kIo, EPROTO, "the mount handed over no image");
  auto image = Image::open(options.given.front().path, options);
  if (!image) return image.error();
  std::shared_ptr<Attachment> attachment(new Attachment(socket_path, std::move(*socket), patience));
  attachment->uuid_ = (*image)->info().uuid;
  auto session = Session::start(std::move(*image), limits, layer);
  if (!session) return session.error();
  attachment->session_ = std::move(*session);
  attachment->stop_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  attachment->want_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  attachment->shared_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  attachment->fetch_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  attachment->may_want_ = answer->value == protocol::kMayWant;
  attachment->session_->tell_of_missing_bases(attachment->want_);
  log_detail("attached " + options.given.front().path + (write ? " for writing" : " for reading"));
  PCOW_TRY(attachment->control_.start("pcow-control",
                                      [serving = attachment.get()] { serving->serve_mount(); }));
  return attachment;
}

Attachment::~Attachment() {
  session_.reset();  // before the eventfds are closed: the fault thread may write to them
  if (stop_ >= 0) close(stop_);
  if (want_ >= 0) close(want_);
  if (shared_ >= 0) close(shared_);
  if (fetch_ >= 0) close(fetch_);
}

void Attachment::serve_mount() {
  for (;;) {
    // While the mount cannot be asked, `want_` stays readable.
    const int want = socket_ && may_want_ ? want_ : -1;
    const int shared = socket_ ? shared_ : -1;
    const int fetch = socket_ ? fetch_ : -1;
    struct pollfd ready[] = {{stop_, POLLIN, 0},
                             {socket_.number(), POLLIN, 0},
                             {want, POLLIN, 0},
                             {shared, POLLIN, 0},
                             {fetch, POLLIN, 0}};
    const int count = poll(ready, 5,
                           !socket_             ? kReconnectMs
                           : session_->is_cut() ? patience_.cut_ms
                                                : -1);
    if (ready[0].revents) break;
    if (!socket_) {
      if (session_->writable() && resume())
        log_detail(socket_path_ + ": attached to the next mount");
      continue;
    }
    if (ready[2].revents && ask_for_bases()) continue;
    if (ready[3].revents && ask_for_shared()) continue;
    if (ready[4].revents && ask_for_fetches()) continue;
    Packet request;
    std::string reason;
    Received received =
        protocol::receive_packet(socket_.number(), protocol::kMaxDescriptors, &request, &reason);
    if (received == Received::kNothing) {
      if (count != 0) continue;
      reason = "it left the memory frozen for too long";
    }
    const size_t most = request.kind == Kind::kBases    ? protocol::kMaxDescriptors
                        : request.kind == Kind::kShared ? 1
                                                        : 0;
    if (received == Received::kPacket && request.descriptors.size() > most) {
      received = Received::kMalformed;
      reason = "a request with unexpected descriptors";
    }
    if (received == Received::kPacket && request.kind == Kind::kShared) {
      session_->take_shared(request.value, request.descriptors.empty()
                                               ? Descriptor()
                                               : std::move(request.descriptors[0]));
      continue;
    }
    if (received == Received::kPacket && request.kind == Kind::kFetched) {
      session_->take_fetched(request.value, request.text);
      continue;
    }
    if (received == Received::kPacket && protocol::send_packet(socket_.number(), answer(request)))
      continue;
    // The mount is gone, or violates the protocol. A snapshot that it has not committed has not
    // happened, and the guest continues.
    session_->abort();
    session_->shared().withdraw();
    session_->fetches().withdraw();
    socket_.reset();
    log_detail(socket_path_ + ": the mount is gone" + (reason.empty() ? "" : " (" + reason + ")"));
  }
  // A snapshot in progress would block faults and the closing of the image.
  session_->abort();
}

// While a base is missing, the fault thread signals it again and again: ask once a second. Returns
// false if the mount is gone.
bool Attachment::ask_for_bases() {
  uint64_t ignored;
  (void)!read(want_, &ignored, sizeof ignored);
  const int64_t now = monotonic_ms();
  if (wanted_ms_ && now - wanted_ms_ < kWantAgainMs) return true;
  wanted_ms_ = now;
  Packet want;
  want.kind = Kind::kWant;
  return protocol::send_packet(socket_.number(), want);
}

// Returns false if the mount is gone.
bool Attachment::ask_for_shared() {
  uint64_t ignored;
  (void)!read(shared_, &ignored, sizeof ignored);
  for (const SharedBase::Want& want : session_->shared().take_wants()) {
    Packet asked;
    asked.kind = Kind::kWantShared;
    asked.value = static_cast<uint32_t>(want.slice);
    asked.text = std::to_string(want.count);
    if (!protocol::send_packet(socket_.number(), asked)) return false;
  }
  return true;
}

// Returns false if the mount is gone.
bool Attachment::ask_for_fetches() {
  uint64_t ignored;
  (void)!read(fetch_, &ignored, sizeof ignored);
  for (const auto& [number, block] : session_->fetches().take_wants()) {
    Packet asked;
    asked.kind = Kind::kFetch;
    asked.value = number;
    asked.text = block.uuid + " " + std::to_string(block.layer) + " " +
                 std::to_string(block.block) + " " + block.path;
    if (!protocol::send_packet(socket_.number(), asked)) return false;
  }
  return true;
}

bool Attachment::resume() {
  auto socket = connect_to(socket_path_, kReconnectMs);
  if (!socket) return false;
  auto sent =
      send_request(socket->number(), Kind::kResume, 1, uuid_, session_->image().descriptor());
  auto answer = sent ? receive_answer(socket->number(), stop_, patience_.answer_ms) : sent.error();
  if (!answer) {
    log_detail(socket_path_ + ": " + answer.error().message);
    return false;
  }
  socket_ = std::move(*socket);
  may_want_ = answer->value == protocol::kMayWant;
  wanted_ms_ = 0;
  return true;
}

Packet Attachment::answer(const Packet& request) {
  const auto outcome = [&](const Result<void>& result) {
    if (!result) log_detail(result.error().message);
    return result ? done(request) : failed(request, result.error());
  };
  switch (request.kind) {
    case Kind::kPrepare: return outcome(session_->prepare(request.text, request.value == 1));
    case Kind::kCut: return outcome(session_->cut());
    case Kind::kCommit: return outcome(session_->commit());
    case Kind::kFinish: return outcome(session_->finish());
    case Kind::kAbort: session_->abort(); return done(request);
    case Kind::kDelete: return outcome(session_->remove(request.text));
    case Kind::kRename: return outcome(session_->rename_snapshot(request.text));
    case Kind::kSync: return outcome(session_->sync());
    case Kind::kBases: {
      auto files = files_of(request);
      return outcome(files ? session_->give_bases(*files) : files.error());
    }
    case Kind::kStore:
      return outcome(session_->offer_store(strtoull(request.text.c_str(), nullptr, 10), shared_));
    case Kind::kMayFetch: session_->fetches().offer(fetch_); return done(request);
    case Kind::kStatus: return done(request, session_->statistics().json());
    default:
      return failed(request,
                    Error(Code::kInvalid, "this version of the monitor does not know the request"));
  }
}

void Attachment::detach() {
  const uint64_t one = 1;
  (void)!write(stop_, &one, sizeof one);
  control_.join();
  session_->close();
  release();
  // Last, because the mount also opens the image when the connection ends.
  socket_.reset();
}

// Tells the mount that the image is closed and unlocked. Returns when the mount has taken the image
// back, or does not answer (an old mount ends the connection): a write(2) to the flat file that
// follows must not find the image attached.
void Attachment::release() {
  Packet word;
  word.kind = Kind::kRelease;
  if (!socket_ || !session_->writable() || !protocol::send_packet(socket_.number(), word)) return;
  while (await_packet(socket_.number(), -1, patience_.answer_ms)) {
    Packet said;
    std::string reason;
    if (protocol::receive_packet(socket_.number(), protocol::kMaxDescriptors, &said, &reason) !=
        Received::kPacket)
      return;
    if (said.kind == Kind::kReleased || said.kind == Kind::kRefused) return;
    // A request that crossed kRelease: the mount does the work itself when it has the image again.
    const Error going(Code::kClosed, ESHUTDOWN, "the process is releasing the image");
    if (!protocol::send_packet(socket_.number(), failed(said, going))) return;
  }
}

}  // namespace pcow
