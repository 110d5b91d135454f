// The mount's side of the attach protocol (attach/protocol.h): it accepts connections, and receives
// and sends messages.
//
// One thread serves all connections, and never waits for a peer. It knows the order of messages,
// but nothing about images: it reports events, and commands tell it what to answer.
//
// The thread has its own table of file descriptors (unshare(2), CLONE_FILES). Closing the
// descriptor of a flat file makes the kernel ask this process's own mount to write the file back
// and flush it. If the process were killed at that moment, a thread with the shared table would
// wait in that close forever: it would keep the table alive, and with it /dev/fuse, for whose end
// it waits. With a table of its own, the end of the other threads closes /dev/fuse, which ends the
// wait. This thread cannot wake Node, because Node's loop waits for a descriptor of the process's
// table. So a second thread, which uses that table, delivers the reports.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "addon/foreign_closer.h"
#include "attach/packet.h"
#include "engine/error.h"
#include "store/clean_store.h"

namespace pcow::addon {

using protocol::Descriptor;
using protocol::Packet;

struct AttachEvent {
  enum class Kind {
    kAttach,      // a process shows an open flat file: answer with kHandOver or kRefuse
    kResume,      // a process shows an image file that it writes: answer with kConfirm or kRefuse
    kHandedOver,  // kHandOver or kConfirm was done (ok), or failed and the connection is closed
    kAnswer,      // to a request
    kRelease,     // the monitor has closed the image: answer with kReleased
    // the monitor needs the image's bases: answer with kGiveBases. There is no second kWant before
    // that
    kWant,
    // faults of the process wait for a block: answer with kFetched. `id` is its number, `text` says
    // which block it is
    kFetch,
    // kShare was done (ok; `text`: the bytes of the layer, decimal), or failed. What follows is the
    // request kStore
    kOpened,
    kLooked,  // kLook was done
    // after kAttach or kResume: the connection is gone, and there are no more events for it
    kClosed,
  };
  Kind kind{};
  uint64_t connection = 0;
  // kAttach, kResume
  uint32_t pid = 0;  // as this process sees it
  uint32_t uid = 0;
  bool wants_write = false;
  uint64_t device = 0;  // of the file that was shown: the flat file, or (kResume) the image file
  uint64_t inode = 0;   // of the same file
  uint32_t flags = 0;   // kAttach: those of open(2)
  // kHandedOver, kAnswer, kOpened, kLooked
  uint32_t id = 0;
  bool ok = false;
  int err = 0;  // positive
  // a sentence; the answer; kResume: the image's uuid; kClosed: the reason, if the mount closed the
  // connection
  std::string text;
};

struct AttachCommand {
  // kLook: everything that the connection has sent so far is received and reported first, then
  // kLooked; also for a connection that is gone.
  enum class Kind {
    kHandOver,
    kConfirm,
    kRefuse,
    kRequest,
    kGiveBases,
    kShare,
    kFetched,
    kReleased,
    kLook,
    kClose
  };
  Kind kind{};
  uint64_t connection = 0;
  std::vector<std::string>
      // kHandOver: the image, then its bases. kGiveBases: the bases; empty if there are none to
      // give
      paths;
  bool write = false;        // kHandOver: the image with the writer's lock
  int err = 0;               // kRefuse, positive
  std::string text;          // kRefuse, kRequest, kFetched
  protocol::Kind request{};  // kRequest, with `id` and `value`
  uint32_t id = 0;           // also of kLook, kGiveBases and kFetched
  uint32_t value = 0;
  CleanStore::Layer layer;  // kShare: what the image stands on
};

class AttachServer : public std::enable_shared_from_this<AttachServer> {
 public:
  // Any thread. `report` is called on one of the server's threads, and never after stop() has
  // returned.
  using Report = std::function<void(AttachEvent)>;
  // `store_budget`: bytes of the clean store; 0: there is none.
  static Result<std::shared_ptr<AttachServer>> start(const std::string& path, uint64_t store_budget,
                                                     Report report);
  // Any thread. Does nothing if the connection is gone: its kClosed has been reported, or will be.
  void command(AttachCommand command);
  // Any thread. Removes the socket, and makes the thread end soon; does not wait for it.
  void stop();
  // Any thread. All zero if there is no clean store.
  CleanStore::Figures store_figures();

 private:
  // kReleasing: the monitor has given the image back, and kReleased has not been sent yet.
  // kReleased: it has been sent.
  enum class State { kNew, kAsked, kAttached, kReleasing, kReleased };
  struct Connection {
    Descriptor socket;
    State state = State::kNew;
    uint32_t pid = 0;  // as this process sees it
    uint32_t uid = 0;
    int64_t deadline_ms = 0;      // kNew, kReleased: when the connection is given up
    Descriptor image;             // kAsked after kResume: the file that was shown
    bool outstanding = false;     // a request waits for its answer
    uint32_t id = 0;              // of that request
    bool wants = false;           // kWant was reported, and has not been answered yet
    bool shares = false;          // kStore was sent
    bool fetches = false;         // kMayFetch was sent
    std::set<uint32_t> fetching;  // numbers of kFetch that have not been answered yet
    uint32_t late_id =
        // kReleasing, kReleased: the request whose answer may still come, and is ignored; 0: none
        0;
  };
  using Connections = std::map<uint64_t, Connection>;

  AttachServer(std::string path, uint64_t store_budget, int listener, int wakeup, Report report);
  static Result<void> start_thread(void* (*main)(void*), void* argument);
  static void* serve_main(void* start);
  static void* report_main(void* start);
  void carry_reports();
  // The rest is called on the server's thread.
  int unshare_descriptors();
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
  std::string take_want_shared(uint64_t id, Connection* connection, const Packet& packet);
  std::string take_fetch(uint64_t id, Connection* connection, Packet* packet);
  std::string take_release(uint64_t id, Connection* connection, const Packet& packet);
  void report_shut_down(uint64_t id, uint32_t request);
  void run_commands();
  void run(const AttachCommand& command);
  void look(const AttachCommand& command);
  void request(Connections::iterator connection, const AttachCommand& command);
  void give_bases(Connections::iterator connection, const AttachCommand& command);
  void fail_request(uint64_t id, uint32_t request, const Error& error);
  void send_request(Connections::iterator connection, Packet packet);
  void start_store();
  void share(Connections::iterator connection, const AttachCommand& command);
  void report_opened(const CleanStore::Answer& answer);
  void pass_on(CleanStore::Answer answer);
  void fetched(Connections::iterator connection, const AttachCommand& command);
  void released(Connections::iterator connection);
  void hand_over(Connections::iterator connection, const AttachCommand& command);
  void confirm(Connections::iterator connection);
  void refuse(Connections::iterator connection, int err, const std::string& text);
  void drop(Connections::iterator connection, const std::string& why);
  void report(AttachEvent event);

  const std::string path_;
  const uint64_t store_budget_;
  const int listener_;  // closed in the process's table once the thread has its own table
  const int wakeup_;    // open in both tables until the end
  Descriptor epoll_;
  Connections connections_;
  ForeignCloser closer_;  // for everything that a connection has sent, and for its socket
  uint64_t next_id_ = 2;  // 0 and 1 are the epoll marks of wakeup_ and listener_
  // not 0: the listener is not polled until then, because descriptors have run out
  int64_t accept_again_ms_ = 0;

  // Guards the rest. It is held while report_ is called, which only queues the event.
  std::mutex lock_;
  bool stopped_ = false;
  std::deque<AttachCommand> commands_;
  std::deque<CleanStore::Answer> answers_;  // of the store
  std::unique_ptr<CleanStore> store_;       // the server's thread makes it and ends it
  std::deque<AttachEvent> events_;
  std::condition_variable reported_;
  Report report_;
};

}  // namespace pcow::addon
