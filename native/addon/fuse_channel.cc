#include "addon/fuse_channel.h"

#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "addon/fuse_library.h"

namespace pcow::addon {

namespace {

constexpr uint32_t kLargestRequest = uint32_t{1} << 20;
// FUSE_DIRECT_IO_ALLOW_MMAP, which older headers do not define
constexpr uint64_t kDirectIoAllowMmap = uint64_t{1} << 36;
// the part of its buffer that libfuse reserves for the header of a request
constexpr uint32_t kHeader = 4096;

struct ChannelLibrary {
  decltype(&fuse_chan_new) chan_new;
  decltype(&fuse_chan_fd) chan_fd;
  decltype(&fuse_chan_data) chan_data;
  decltype(&fuse_chan_session) chan_session;
  decltype(&fuse_session_exit) session_exit;
  decltype(&fuse_session_exited) session_exited;
};
ChannelLibrary library;

// The state of FUSE_INIT of one connection.
struct Greeting {
  uint64_t unique = 0;  // number of the request FUSE_INIT; 0: none (the kernel never uses 0)
  uint64_t offered = 0;
};

std::atomic<bool> maps_direct_files{false};

// Describes an answer of this thread that the kernel may keep.
struct Kept {
  uint64_t unique;  // number of the request; 0: none
  std::chrono::seconds valid;
};
thread_local Kept kept{};

Greeting* greeting_of(fuse_chan* channel) {
  return static_cast<Greeting*>(library.chan_data(channel));
}

void note_greeting(fuse_chan* channel, const char* request, size_t length) {
  fuse_in_header header;
  std::memcpy(&header, request, sizeof header);
  fuse_init_in offer{};
  if (header.opcode != FUSE_INIT ||
      length < sizeof header + offsetof(fuse_init_in, flags) + sizeof offer.flags)
    return;
  std::memcpy(&offer, request + sizeof header, std::min(length - sizeof header, sizeof offer));
  greeting_of(channel)->unique = header.unique;
  greeting_of(channel)->offered = offer.flags;
  if (offer.flags & FUSE_INIT_EXT) greeting_of(channel)->offered |= uint64_t{offer.flags2} << 32;
}

// Returns the same values as libfuse's own function (fuse_kern_chan.c), because libfuse interprets
// them.
int receive(fuse_chan** channel, char* buffer, size_t size) {
  fuse_session* session = library.chan_session(*channel);
  for (;;) {
    const ssize_t length = read(library.chan_fd(*channel), buffer, size);
    const int err = errno;
    if (library.session_exited(session)) return 0;
    if (length < 0 && err == ENOENT) continue;  // the request was interrupted
    if (length < 0 && err == ENODEV) {          // the mount has ended
      library.session_exit(session);
      return 0;
    }
    if (length < 0) return -err;
    if (static_cast<size_t>(length) < sizeof(fuse_in_header)) return -EIO;
    note_greeting(*channel, buffer, static_cast<size_t>(length));
    return static_cast<int>(length);
  }
}

int pass_on(fuse_chan* channel, const iovec* parts, size_t count) {
  if (writev(library.chan_fd(channel), parts, static_cast<int>(count)) >= 0) return 0;
  return -errno;
}

// Returns false if the answer's length differs from that in our version of the protocol.
template <typename Answer>
bool pass_on_kept(fuse_chan* channel, const iovec* parts, uint64_t Answer::*valid, int* result) {
  if (parts[1].iov_len != sizeof(Answer)) return false;
  Answer answer;
  std::memcpy(&answer, parts[1].iov_base, sizeof answer);
  answer.*valid = static_cast<uint64_t>(kept.valid.count());
  const iovec completed[] = {parts[0], {&answer, sizeof answer}};
  *result = pass_on(channel, completed, 2);
  return true;
}

int send(fuse_chan* channel, const iovec parts[], size_t count) {
  Greeting* greeting = greeting_of(channel);
  if (!parts) return 0;  // libfuse sends no answer
  fuse_out_header header;
  std::memcpy(&header, parts[0].iov_base, sizeof header);
  const bool may_keep = header.unique != 0 && header.unique == std::exchange(kept.unique, 0);
  int result = 0;
  if (may_keep && header.error == 0 && count == 2 &&
      (pass_on_kept(channel, parts, &fuse_entry_out::entry_valid, &result) ||
       pass_on_kept(channel, parts, &fuse_attr_out::attr_valid, &result)))
    return result;
  if (greeting->unique == 0 || header.unique != greeting->unique)
    return pass_on(channel, parts, count);
  greeting->unique = 0;
  if (header.error != 0 || count != 2) return pass_on(channel, parts, count);

  fuse_init_out answer{};
  std::memcpy(&answer, parts[1].iov_base, std::min(parts[1].iov_len, sizeof answer));
  if (greeting->offered & FUSE_MAX_PAGES) {
    answer.flags |= FUSE_MAX_PAGES;
    answer.max_pages = static_cast<uint16_t>(kLargestRequest / 4096);
  }
  // A write has no rights to take away: no file of a mount has a set-user-id bit or a capability.
  answer.flags |= static_cast<uint32_t>(greeting->offered) & FUSE_HANDLE_KILLPRIV_V2;
  if (greeting->offered & kDirectIoAllowMmap) {
    answer.flags |= FUSE_INIT_EXT;
    answer.flags2 |= kDirectIoAllowMmap >> 32;
    maps_direct_files = true;
  }
  header.len = sizeof header + sizeof answer;
  const iovec completed[] = {{&header, sizeof header}, {&answer, sizeof answer}};
  return pass_on(channel, completed, 2);
}

void destroy(fuse_chan* channel) { delete greeting_of(channel); }

}  // namespace

void let_kernel_keep(uint64_t unique, std::chrono::seconds valid) { kept = {unique, valid}; }

bool fuse_maps_direct_files() { return maps_direct_files; }

fuse_chan* make_fuse_channel(void* libfuse, fuse_chan* channel) {
  if (!find_function(libfuse, "fuse_chan_new", "FUSE_2.6", &library.chan_new) ||
      !find_function(libfuse, "fuse_chan_fd", "FUSE_2.4", &library.chan_fd) ||
      !find_function(libfuse, "fuse_chan_data", "FUSE_2.4", &library.chan_data) ||
      !find_function(libfuse, "fuse_chan_session", "FUSE_2.4", &library.chan_session) ||
      !find_function(libfuse, "fuse_session_exit", "FUSE_2.4", &library.session_exit) ||
      !find_function(libfuse, "fuse_session_exited", "FUSE_2.4", &library.session_exited))
    return nullptr;
  fuse_chan_ops operations = {receive, send, destroy};
  auto greeting = std::make_unique<Greeting>();
  fuse_chan* made = library.chan_new(&operations, library.chan_fd(channel),
                                     kLargestRequest + kHeader, greeting.get());
  if (made) greeting.release();
  return made;
}

}  // namespace pcow::addon
