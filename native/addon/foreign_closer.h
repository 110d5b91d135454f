// Closes descriptors that other processes control: files that another process has sent to this one,
// and sockets in which such files may still be queued. The other process decides how long close(2)
// of them takes (a FUSE file whose filesystem does not answer, a TCP socket that lingers). So a
// thread that serves others never closes them itself.
#pragma once

#include <cstdint>
#include <memory>

#include "attach/packet.h"

namespace pcow::addon {

class ForeignCloser {
 public:
  // The closing threads share the table of file descriptors of the thread that first calls close().
  ForeignCloser();
  // Descriptors that still wait are closed in any case, as far as their owners allow it.
  ~ForeignCloser();
  ForeignCloser(const ForeignCloser&) = delete;
  ForeignCloser& operator=(const ForeignCloser&) = delete;

  // Always the same thread. Returns at once. `uid`: of the process that sent the descriptor.
  void close(protocol::Descriptor descriptor, uint32_t uid);
  // Any thread. Whether closing this user's descriptors takes so long that no more may be accepted
  // from the user.
  bool refuses(uint32_t uid) const;

 private:
  struct State;
  static void* close_on_thread(void* state);
  static void start_thread(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace pcow::addon
