// Closes descriptors that belong to strangers: files that another process has passed to this one, and sockets in which such files may
// still be queued. close(2) of them takes as long as the stranger likes (a FUSE file whose file system does not answer, a TCP socket
// that lingers), so a thread that serves others never does it.
#pragma once

#include <cstdint>
#include <memory>

#include "attach/packet.h"

namespace pcow::addon {

class ForeignCloser {
 public:
  // The threads that close share the table of file descriptors of the thread that calls close() first.
  ForeignCloser();
  // Descriptors that still wait are closed all the same, if their owners let that happen.
  ~ForeignCloser();
  ForeignCloser(const ForeignCloser&) = delete;
  ForeignCloser& operator=(const ForeignCloser&) = delete;

  // One thread, always the same. Returns at once. `uid`: of the process that the descriptor came from.
  void close(protocol::Descriptor descriptor, uint32_t uid);
  // Any thread. Whether closing this user's descriptors has been taking long, so that no more are to be taken from them.
  bool refuses(uint32_t uid) const;

 private:
  struct State;
  static void* close_on_thread(void* state);
  static void start_thread(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace pcow::addon
