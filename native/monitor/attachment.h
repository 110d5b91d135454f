// The tie between a session and the mount: attaching, the control thread that answers the mount's requests, and finding
// the next mount when one has died. The guest needs none of it: faults and flushes are served without the mount.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "attach/packet.h"
#include "monitor/session.h"

namespace pcow {

// How long a mount may be silent where something waits for it. It is taken for dead then.
struct Patience {
  int answer_ms = 30'000;  // to attach and to resume: opening and recovering an image may take it a while
  int cut_ms = 60'000;     // while the memory stands still: twice what it gives each of its monitors (live-snapshot.ts)
};

class Attachment {
 public:
  // Shows the open flat file to the mount behind `socket_path` and takes over its image. Any thread of the application.
  // Fails with what the mount answered (kBusy and the like), or why it could not be asked.
  static Result<std::shared_ptr<Attachment>> attach(const std::string& socket_path, int flat_file, bool write,
                                                    const Session::Limits& limits, const Patience& patience = {});
  // After detach(), and when nothing is mapped.
  ~Attachment();
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;

  Session& session() { return *session_; }
  // Ends the control thread, and closes the image: when it returns the mount has it back, or does not answer.
  void detach();

 private:
  Attachment(std::string socket_path, protocol::Descriptor socket, const Patience& patience)
      : socket_path_(std::move(socket_path)), patience_(patience), socket_(std::move(socket)) {}
  void serve_mount();  // the control thread
  bool resume();
  void release();
  bool ask_for_bases();
  protocol::Packet answer(const protocol::Packet& request);

  const std::string socket_path_;
  const Patience patience_;
  protocol::Descriptor socket_;  // the control thread's; none while the mount is gone
  std::unique_ptr<Session> session_;
  std::string uuid_;
  int stop_ = -1;  // eventfd: the control thread is to end
  int want_ = -1;  // eventfd, which the session writes to: a base is missing
  // The control thread's.
  bool may_want_ = false;  // the mount knows kWant
  int64_t wanted_ms_ = 0;  // when it was last sent; monotonic
  Thread control_;
};

}  // namespace pcow
