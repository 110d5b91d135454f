// The connection between a session and the mount: attaching, the control thread that answers the
// mount's requests, and reconnecting to the next mount after one has died. The guest does not
// depend on it: faults and flushes are served without the mount.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "attach/packet.h"
#include "monitor/session.h"

namespace pcow {

// How long the monitor waits for a silent mount. After that, it takes the mount for dead.
struct Patience {
  // For attaching and resuming: the mount may have to open and recover the image first.
  int answer_ms = 30'000;
  // While the memory is frozen: twice what the mount gives each of its monitors (live-snapshot.ts).
  int cut_ms = 60'000;
};

class Attachment {
 public:
  // Shows the open flat file to the mount behind `socket_path`, and takes its image over. `layer`:
  // of the snapshot whose file it is; 0: it is the image's. Any thread of the monitor. Fails with the mount's refusal (kBusy and others), or with the reason
  // why the mount could not be asked.
  static Result<std::shared_ptr<Attachment>> attach(const std::string& socket_path, int flat_file,
                                                    bool write, uint64_t layer,
                                                    const Session::Limits& limits,
                                                    const Patience& patience = {});
  // Call detach() first. Nothing may be mapped.
  ~Attachment();
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  Session& session() { return *session_; }
  // Ends the control thread and closes the image. When it returns, the mount has the image again,
  // or does not answer.
  void detach();

 private:
  Attachment(std::string socket_path, protocol::Descriptor socket, const Patience& patience)
      : socket_path_(std::move(socket_path)), patience_(patience), socket_(std::move(socket)) {}
  void serve_mount();  // the control thread
  bool resume();
  void release();
  bool ask_for_bases();
  bool ask_for_shared();
  bool ask_for_fetches();
  protocol::Packet answer(const protocol::Packet& request);

  const std::string socket_path_;
  const Patience patience_;
  protocol::Descriptor socket_;  // the control thread's; invalid while there is no mount
  std::unique_ptr<Session> session_;
  std::string uuid_;
  int stop_ = -1;    // eventfd: the control thread must end
  int want_ = -1;    // eventfd, written by the session when a base is missing
  int shared_ = -1;  // eventfd, written by the session when it wants shared memory
  int fetch_ = -1;   // eventfd, written by the session when it wants remote bytes
  // The control thread's:
  bool may_want_ = false;  // the mount knows kWant
  int64_t wanted_ms_ = 0;  // when kWant was last sent; monotonic
  Thread control_;
};

}  // namespace pcow
