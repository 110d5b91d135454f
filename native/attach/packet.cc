#include "attach/packet.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace pcow::protocol {

namespace {

std::vector<Descriptor> take_descriptors(msghdr* message) {
  std::vector<Descriptor> taken;
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int number;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof number, sizeof number);
      taken.emplace_back(number);
    }
  }
  return taken;
}

const char* fault_of(const msghdr& message, size_t length, const Header& header) {
  if (message.msg_flags & MSG_CTRUNC)
    return "a message with more descriptors than its kind may have";
  if (message.msg_flags & MSG_TRUNC) return "a message that is too long";
  if (length < sizeof(Header)) return "a message shorter than its header";
  if (header.magic != kMagic) return "a message that does not begin with \"PCOW\"";
  if (header.version != kVersion)
    return "another version of the protocol: use the monitor of this mount's version";
  if (header.length != length - sizeof(Header))
    return "a message whose length differs from the length in its header";
  if (header.zero != 0) return "a message with a nonzero reserved field";
  return nullptr;
}

}  // namespace

Received receive_packet(int socket, size_t most_descriptors, Packet* packet, std::string* reason) {
  Header header{};
  auto text = std::make_unique<char[]>(kMaxText);
  // The kernel closes the descriptors that do not fit, and marks the packet as truncated.
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  iovec parts[] = {{&header, sizeof header}, {text.get(), kMaxText}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(most_descriptors * sizeof(int));
  ssize_t length;
  do {
    length = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (length < 0 && errno == EINTR);
  if (length < 0) return errno == EAGAIN ? Received::kNothing : Received::kEnd;
  // Take the descriptors of a malformed message, too: the caller closes them, because closing a
  // foreign descriptor may block for any length of time.
  packet->descriptors = take_descriptors(&message);
  // An empty packet looks like the end of the connection, and is not a valid message either.
  if (length == 0) return Received::kEnd;
  if (const char* fault = fault_of(message, static_cast<size_t>(length), header)) {
    *reason = fault;
    return Received::kMalformed;
  }
  packet->kind = header.kind;
  packet->id = header.id;
  packet->value = header.value;
  packet->text.assign(text.get(), header.length);
  return Received::kPacket;
}

bool send_packet(int socket, const Packet& packet) {
  Header header{kMagic,    kVersion,     packet.kind,
                packet.id, packet.value, static_cast<uint32_t>(packet.text.size()),
                0};
  iovec parts[] = {{&header, sizeof header},
                   {const_cast<char*>(packet.text.data()), packet.text.size()}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  if (!packet.descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(packet.descriptors.size() * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(packet.descriptors.size() * sizeof(int));
    for (size_t i = 0; i < packet.descriptors.size(); i++) {
      const int number = packet.descriptors[i].number();
      std::memcpy(CMSG_DATA(part) + i * sizeof number, &number, sizeof number);
    }
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent >= 0;
}

}  // namespace pcow::protocol
