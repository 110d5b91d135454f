// Reads an input as a list of messages on a socket, so that a mutated input is still such a list.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "attach/protocol.h"

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t byte() { return left_ ? (left_--, *data_++) : 0; }
  std::string bytes(size_t most) {
    const size_t count = most < left_ ? most : left_;
    std::string taken(reinterpret_cast<const char*>(data_), count);
    data_ += count;
    left_ -= count;
    return taken;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Message {
  std::string bytes;
  std::vector<int> descriptors;
};

// Mostly a message with a valid header, sometimes just bytes. `files`: descriptors that it may
// send.
inline Message next_message(Input* input, const std::vector<int>& files) {
  Message message;
  const uint8_t shape = input->byte();
  if (shape < 16) {
    message.bytes = input->bytes(input->byte());
  } else {
    pcow::protocol::Header header{};
    header.magic = pcow::protocol::kMagic;
    header.version = pcow::protocol::kVersion;
    header.kind = static_cast<pcow::protocol::Kind>(input->byte() % 27);
    header.id = input->byte();
    header.value = input->byte();
    const std::string text = input->bytes(input->byte());
    header.length = static_cast<uint32_t>(text.size()) + (shape < 20 ? input->byte() : 0);
    message.bytes.assign(reinterpret_cast<const char*>(&header), sizeof header);
    message.bytes += text;
  }
  for (int count = input->byte() % 4; count > 0 && !files.empty(); count--)
    message.descriptors.push_back(files[input->byte() % files.size()]);
  return message;
}

inline void send_message(int socket, const Message& message) {
  iovec part = {const_cast<char*>(message.bytes.data()), message.bytes.size()};
  msghdr packet{};
  packet.msg_iov = &part;
  packet.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  if (!message.descriptors.empty()) {
    const size_t length = message.descriptors.size() * sizeof(int);
    packet.msg_control = control;
    packet.msg_controllen = CMSG_SPACE(length);
    cmsghdr* rights = CMSG_FIRSTHDR(&packet);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(rights), message.descriptors.data(), length);
  }
  (void)sendmsg(socket, &packet, MSG_DONTWAIT | MSG_NOSIGNAL);
}
