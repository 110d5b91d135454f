// The mount's end of the attach protocol (attach/protocol.h): who connects, what they send, what they are sent.
//
// One thread serves all connections, and never waits for a peer. It knows the order of messages, and nothing of images: it
// reports events, and is told by commands what to answer.
//
// The thread has a table of file descriptors of its own (unshare(2), CLONE_FILES). Closing the descriptor of a flat file
// makes the kernel ask this process's own mount to write back and flush it. Were the process killed at that moment, a thread
// that waits so would keep the table with /dev/fuse in it alive, which it waits for: for ever. With a table of its own,
// the others' end closes /dev/fuse, and that ends the waiting. Nor can that thread wake Node, whose loop waits for a descriptor:
// a second one, with the process's table, carries the reports.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "addon/foreign_closer.h"
#include "attach/packet.h"
#include "engine/error.h"

namespace pcow::addon {

using protocol::Descriptor;
using protocol::Packet;

struct AttachEvent {
  enum class Kind {
    kAttach,      // somebody shows an open flat file: answer with kHandOver or kRefuse
    kResume,      // somebody shows an image file that they write: answer with kConfirm or kRefuse
    kHandedOver,  // kHandOver or kConfirm was done (ok), or failed, and the connection is closed
    kAnswer,      // to a request
    kRelease,     // the monitor has closed the image: answer with kReleased
    kWant,        // the image's bases are needed anew: answer with kGiveBases. No second one comes before
    kLooked,      // kLook was done
    kClosed,      // after kAttach or kResume: the connection is gone; nothing more comes from it
  };
  Kind kind{};
  uint64_t connection = 0;
  // kAttach, kResume
  uint32_t pid = 0;  // as this process sees it
  uint32_t uid = 0;
  bool wants_write = false;
  uint64_t device = 0;  // of the file that was shown: the flat file, or (kResume) the image file
  uint64_t inode = 0;   // the same
  uint32_t flags = 0;   // kAttach: those of open(2)
  // kHandedOver, kAnswer, kLooked
  uint32_t id = 0;
  bool ok = false;
  int err = 0;       // positive
  std::string text;  // a sentence; the answer; kResume: the image's uuid; kClosed: why, where it was our doing
};

struct AttachCommand {
  // kLook: whatever the connection has sent until now is taken and reported first, then kLooked, also of one that is gone.
  enum class Kind { kHandOver, kConfirm, kRefuse, kRequest, kGiveBases, kReleased, kLook, kClose };
  Kind kind{};
  uint64_t connection = 0;
  std::vector<std::string>
      paths;                 // kHandOver: the image, then its bases. kGiveBases: these; none: there are none to give
  bool write = false;        // kHandOver: the image with the writer's lock
  int err = 0;               // kRefuse, positive
  std::string text;          // kRefuse, kRequest
  protocol::Kind request{};  // kRequest, with `id` and `value`
  uint32_t id = 0;           // kLook and kGiveBases as well
  uint32_t value = 0;
};

class AttachServer : public std::enable_shared_from_this<AttachServer> {
 public:
  // Any thread. `report` is called on a thread of the server's, and no more once stop() has returned.
  using Report = std::function<void(AttachEvent)>;
  static Result<std::shared_ptr<AttachServer>> start(const std::string& path, Report report);
  // Any thread. For a connection that is gone it does nothing: its kClosed is on its way, or has been reported.
  void command(AttachCommand command);
  // Any thread. Takes the socket away and ends the thread soon; does not wait for that.
  void stop();

 private:
  // kReleasing: the monitor has given the image back, and kReleased was not sent yet; kReleased: it was.
  enum class State { kNew, kAsked, kAttached, kReleasing, kReleased };
  struct Connection {
    Descriptor socket;
    State state = State::kNew;
    uint32_t pid = 0;  // as this process sees it
    uint32_t uid = 0;
    int64_t deadline_ms = 0;   // kNew, kReleased: when it is given up
    Descriptor image;          // kAsked after kResume: the file that was shown
    bool outstanding = false;  // a request that waits for its answer
    uint32_t id = 0;           // of that request
    bool wants = false;        // kWant was reported, and is not answered yet
    uint32_t late_id =
        0;  // kReleasing, kReleased: of a request whose answer may still come, and is not needed; 0: none
  };
  using Connections = std::map<uint64_t, Connection>;

  AttachServer(std::string path, int listener, int wakeup, Report report);
  static Result<void> start_thread(void* (*main)(void*), void* argument);
  static void* serve_main(void* start);
  static void* report_main(void* start);
  void carry_reports();
  // The rest: the server's thread.
  int take_own_table();
  void serve();
  int wait_ms() const;
  void expire();
  void accept_all();
  void accept_one(Descriptor socket);
  bool receive(Connections::iterator connection);
  std::string take(uint64_t id, Connection* connection, Packet* packet);
  std::string take_first(uint64_t id, Connection* connection, Packet* packet);
  std::string take_answer(uint64_t id, Connection* connection, Packet* packet);
  std::string take_want(uint64_t id, Connection* connection, const Packet& packet);
  std::string take_release(uint64_t id, Connection* connection, const Packet& packet);
  void report_shut_down(uint64_t id, uint32_t request);
  void run_commands();
  void run(const AttachCommand& command);
  void look(const AttachCommand& command);
  void request(Connections::iterator connection, const AttachCommand& command);
  void give_bases(Connections::iterator connection, const AttachCommand& command);
  void released(Connections::iterator connection);
  void hand_over(Connections::iterator connection, const AttachCommand& command);
  void confirm(Connections::iterator connection);
  void refuse(Connections::iterator connection, int err, const std::string& text);
  void drop(Connections::iterator connection, const std::string& why);
  void report(AttachEvent event);

  const std::string path_;
  const int listener_;  // closed in the process's table once the thread has its own
  const int wakeup_;    // open in both until the end
  Descriptor epoll_;
  Connections connections_;
  ForeignCloser closer_;         // of everything that a connection has sent, and of its socket
  uint64_t next_id_ = 2;         // 0 and 1 are the epoll marks of wakeup_ and listener_
  int64_t accept_again_ms_ = 0;  // not 0: the listener rests until then, since descriptors have run out

  // Guards the rest. Held while report_ is called, which only queues.
  std::mutex lock_;
  bool stopped_ = false;
  std::deque<AttachCommand> commands_;
  std::deque<AttachEvent> events_;
  std::condition_variable reported_;
  Report report_;
};

}  // namespace pcow::addon
