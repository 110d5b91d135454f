// Fuzzes the monitor's end of the attach protocol: a mount that answers with anything, hands over
// anything, and sends any requests in any order. The attached process must keep running with its
// memory, and must be able to detach.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "engine/image/image.h"
#include "message.h"
#include "monitor/attachment.h"

using namespace pcow;

namespace {

std::string directory;
std::string socket_path;
int listener = -1;
std::vector<int> files;  // what a mount may hand over: an image with its lock first

void make_image() {
  unlink((directory + "/image.pcow").c_str());
  CreateOptions options;
  options.size = 65536;
  if (!create_image(directory + "/image.pcow", options)) abort();
  if (!files.empty()) close(files[0]);
  const int image = open((directory + "/image.pcow").c_str(), O_RDWR | O_CLOEXEC);
  if (files.empty()) {
    int pipes[2];
    if (pipe(pipes) < 0) abort();
    files = {image, pipes[0], open("/dev/null", O_RDWR | O_CLOEXEC),
             open(directory.c_str(), O_RDONLY | O_CLOEXEC)};
  } else {
    files[0] = image;
  }
}

void serve(Input input) {
  const int peer = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  protocol::Packet heard;
  std::string reason;
  const auto hear = [&](int patience_ms) {
    pollfd ready = {peer, POLLIN, 0};
    if (poll(&ready, 1, patience_ms) == 1) (void)protocol::receive_packet(peer, 1, &heard, &reason);
  };
  hear(1000);
  if (input.byte() % 4) {
    // Most of the time the mount hands over the image, so that a session exists for the requests.
    protocol::Packet answer;
    answer.kind = protocol::Kind::kAttached;
    answer.text = directory + "/image.pcow" + '\0';
    answer.descriptors.emplace_back(dup(files[0]));
    (void)protocol::send_packet(peer, answer);
  }
  for (int messages = 0; !input.empty() && messages < 16; messages++) {
    send_message(peer, next_message(&input, files));
    hear(50);
  }
  close(peer);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  directory = "/dev/shm/pcow-fuzz-XXXXXX";
  if (!mkdtemp(directory.data())) abort();
  atexit([] { (void)!system(("rm -rf " + directory).c_str()); });
  setenv("PCOW_MONITOR_LOG", "/dev/null", 1);
  socket_path = directory + "/socket";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, socket_path.data(), socket_path.size());
  listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 ||
      listen(listener, 8) < 0)
    abort();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  make_image();
  // Closes connections that the monitor made again after the last input.
  for (pollfd come = {listener, POLLIN, 0}; poll(&come, 1, 0) == 1;)
    close(accept(listener, nullptr, nullptr));
  Input input(data, size);
  const bool write = input.byte() % 2;
  std::thread mount(serve, input);
  auto attachment =
      Attachment::attach(socket_path, files[2], write, 0, Session::Limits{1 << 20, 100});
  if (!attachment) {
    mount.join();
    return 0;
  }
  Session& session = (*attachment)->session();
  const size_t length = session.image().size();
  const auto memory = session.map(length, write ? PROT_READ | PROT_WRITE : PROT_READ, 0);
  auto* bytes = memory ? static_cast<volatile char*>(*memory) : nullptr;
  if (bytes && write) bytes[0] = 1;
  mount.join();
  if (bytes && write) {
    bytes[length - 1] = 1;
    if (bytes[0] != 1) abort();
  }
  if (memory) (void)session.unmap(*memory, length);
  (*attachment)->detach();
  return 0;
}
