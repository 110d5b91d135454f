// Fuzzes the mount's end of the attach protocol: connections that send anything, in any order, with
// any descriptors. The server must continue to serve: after each input, a correct monitor must get
// its image.
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "addon/attach_server.h"
#include "engine/image/image.h"
#include "message.h"

using namespace pcow;
using namespace pcow::addon;

namespace {

// Never destroyed: the server's threads run until the process ends.
std::string& directory = *new std::string;
std::string& socket_path = *new std::string;
std::shared_ptr<AttachServer>& server = *new std::shared_ptr<AttachServer>;
// What a peer may send: an image, a pipe, a socket, a directory.
std::vector<int>& files = *new std::vector<int>;

// Acts as the mount's JavaScript: each peer that asks to attach gets the image, and each peer that
// has attached gets a request.
void report(AttachEvent event) {
  AttachCommand command;
  command.connection = event.connection;
  switch (event.kind) {
    case AttachEvent::Kind::kAttach:
      command.kind = AttachCommand::Kind::kHandOver;
      command.paths = {directory + "/image.pcow"};
      break;
    case AttachEvent::Kind::kResume: command.kind = AttachCommand::Kind::kConfirm; break;
    case AttachEvent::Kind::kHandedOver:
      if (!event.ok) return;
      command.kind = AttachCommand::Kind::kRequest;
      command.request = event.connection % 2 ? protocol::Kind::kStatus : protocol::Kind::kMayFetch;
      command.id = 7;
      break;
    case AttachEvent::Kind::kRelease: command.kind = AttachCommand::Kind::kReleased; break;
    case AttachEvent::Kind::kWant:
      command.kind = AttachCommand::Kind::kGiveBases;
      command.paths = {directory + "/image.pcow"};
      command.id = 8;
      break;
    case AttachEvent::Kind::kFetch:
      command.kind = AttachCommand::Kind::kFetched;
      command.id = event.id;
      break;
    case AttachEvent::Kind::kAnswer:
    case AttachEvent::Kind::kOpened:
    case AttachEvent::Kind::kLooked:
    case AttachEvent::Kind::kClosed: return;
  }
  // Another thread sends the command, because the server holds its lock while it reports.
  static auto& lock = *new std::mutex;
  static auto& come = *new std::condition_variable;
  static auto& waiting = *new std::vector<AttachCommand>;
  static const bool started = [] {
    std::thread([] {
      for (;;) {
        std::unique_lock guard(lock);
        come.wait(guard, [] { return !waiting.empty(); });
        const std::vector<AttachCommand> commands = std::exchange(waiting, {});
        guard.unlock();
        for (const AttachCommand& next : commands) server->command(next);
      }
    }).detach();
    return true;
  }();
  (void)started;
  const std::lock_guard guard(lock);
  waiting.push_back(command);
  come.notify_one();
}

int connection() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, socket_path.data(), socket_path.size());
  const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (connect(made, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) abort();
  return made;
}

void honest_monitor() {
  const int made = connection();
  protocol::Packet packet;
  packet.kind = protocol::Kind::kAttach;
  packet.descriptors.emplace_back(dup(files[0]));
  if (!protocol::send_packet(made, packet)) abort();
  // The fuzzer's own alarm may interrupt poll(); it also ends the program if no answer ever comes.
  pollfd ready = {made, POLLIN, 0};
  while (poll(&ready, 1, -1) != 1) {
  }
  protocol::Packet answer;
  std::string reason;
  if (protocol::receive_packet(made, protocol::kMaxDescriptors, &answer, &reason) !=
          protocol::Received::kPacket ||
      answer.kind != protocol::Kind::kAttached || answer.descriptors.size() != 1)
    abort();
  close(made);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  directory = "/dev/shm/pcow-fuzz-XXXXXX";
  if (!mkdtemp(directory.data())) abort();
  atexit([] { (void)!system(("rm -rf " + directory).c_str()); });
  socket_path = directory + "/socket";
  CreateOptions options;
  options.size = 65536;
  if (!create_image(directory + "/image.pcow", options)) abort();
  auto started = AttachServer::start(socket_path, 0, report);
  if (!started) abort();
  server = *started;
  int pipes[2];
  int sockets[2];
  if (pipe(pipes) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) < 0) abort();
  files = {open((directory + "/image.pcow").c_str(), O_RDWR), pipes[0], sockets[0],
           open(directory.c_str(), O_RDONLY | O_DIRECTORY), open("/dev/null", O_WRONLY)};
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  std::vector<int> peers;
  for (int count = 1 + input.byte() % 3; count > 0; count--) peers.push_back(connection());
  for (int messages = 0; !input.empty() && messages < 16; messages++) {
    const int peer = peers[input.byte() % peers.size()];
    send_message(peer, next_message(&input, files));
    if (input.byte() % 4) continue;
    // Sometimes the peer receives the mount's answer before it sends more.
    pollfd ready = {peer, POLLIN, 0};
    protocol::Packet heard;
    std::string reason;
    if (poll(&ready, 1, 20) == 1)
      (void)protocol::receive_packet(peer, protocol::kMaxDescriptors, &heard, &reason);
  }
  for (const int peer : peers) close(peer);
  honest_monitor();
  return 0;
}
