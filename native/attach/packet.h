// Packets of the attach protocol (protocol.h) on a SOCK_SEQPACKET socket, with their descriptors.
// No function here blocks. The monitor and the mount both use it.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "attach/protocol.h"

namespace pcow::protocol {

// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    reset();
    number_ = std::exchange(other.number_, -1);
    return *this;
  }
  int number() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  int release() { return std::exchange(number_, -1); }
  void reset() {
    if (number_ >= 0) ::close(std::exchange(number_, -1));
  }

 private:
  int number_ = -1;
};

struct Packet {
  Kind kind{};
  uint32_t id = 0;
  uint32_t value = 0;
  std::string text;
  std::vector<Descriptor> descriptors;
};

enum class Received { kPacket, kNothing, kEnd, kMalformed };

// Takes the next packet. kMalformed: a complete packet that is not valid in the protocol; `reason`
// says why, and only the packet's descriptors are set. A message with more than `most_descriptors`
// descriptors is malformed; the kernel closes the excess ones.
Received receive_packet(int socket, size_t most_descriptors, Packet* packet, std::string* reason);

// Returns false if the peer is gone, or does not read what it was sent.
bool send_packet(int socket, const Packet& packet);

}  // namespace pcow::protocol
