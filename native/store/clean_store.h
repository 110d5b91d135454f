// The clean store of a mount: memory with what base layers read as, for all attached processes that
// stand on them. A process maps it instead of making clean copies of its own.
//
// It is divided into segments (attach/segment.h). A segment is filled slice by slice when monitors
// ask for it, in the order in which they ask, and turn by turn if several do.
//
// A segment counts whole against the budget, however little of it is filled: whoever has it can
// make the kernel put pages of zeros everywhere else. It counts until its memory is free. When the
// budget is used up, the least recently used segment that nobody else has is dropped; dropping
// another one would free nothing. If there is none, no further segment is made, and the processes
// make copies of their own. So the memory never exceeds the budget, whatever somebody does with
// what it was given, and however long it keeps that.
//
// Layers are told apart by their files (device and inode), their ids and their identities, together
// with those of the bases below them. The identity alone would not do: whoever can write an image
// file can give its layers the identities of another image, and guests of that one would read what
// is in the first.
#pragma once

#include <pthread.h>

#include <atomic>
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

#include "engine/image/image.h"
#include "store/shared_segment.h"

namespace pcow {

class CleanStore {
 public:
  // To a client: a number that stands for an attached process.
  struct Answer {
    enum class Kind {
      kOpened,  // open() is done: `error` is set if it failed
      kSlices   // want() is done: what could be filled is filled
    };
    Kind kind{};
    uint64_t client = 0;
    uint64_t size = 0;             // kOpened: bytes of the layer
    Error error{Code::kIo, ""};    // kOpened
    bool ok = false;               // kOpened
    uint32_t slice = 0;            // kSlices: the first one that was wanted
    protocol::Descriptor segment;  // kSlices: of its segment, if the client does not have it yet
  };
  using Report = std::function<void(Answer)>;

  struct Layer {
    std::string path;  // of the image file that holds it
    uint64_t id = 0;   // in that file
    std::string root;  // if not empty, bases must be in this directory
  };

  struct Figures {
    uint64_t budget = 0;    // bytes
    uint64_t bytes = 0;     // that are filled
    uint64_t segments = 0;  // whose memory is not free
    uint64_t clients = 0;
    uint64_t given = 0;    // segments that were given to a client, in total
    uint64_t refused = 0;  // slices that found no room, in total
  };

  // At most so many wants of a client wait; further ones are ignored.
  static constexpr size_t kMostWants = 64;

  // Starts the store's thread, which has the calling thread's table of descriptors and calls
  // `report`. `budget`: bytes. Less than one segment is none.
  static Result<std::unique_ptr<CleanStore>> start(uint64_t budget, Report report);
  ~CleanStore();  // ends the thread
  CleanStore(const CleanStore&) = delete;
  CleanStore& operator=(const CleanStore&) = delete;

  // Any thread; none of these waits for the disk.
  void open(uint64_t client, Layer layer);
  // Fills up to `count` slices of one segment, if the client has opened a layer. With a count of 0,
  // gives only what is there.
  void want(uint64_t client, uint32_t slice, uint32_t count);
  // The segment of an answer about this slice did not reach the client: it is given again.
  void take_back(uint64_t client, uint32_t slice);
  void forget(uint64_t client);
  Figures figures() const;

 private:
  struct Stored {
    std::string key;
    uint64_t size = 0;             // bytes
    std::unique_ptr<Image> image;  // open while a client needs it
    std::shared_ptr<View> view;
    uint64_t clients = 0;
    struct Segment {
      std::unique_ptr<SharedSegment> memory;
      uint64_t number = 0;   // of this instance: another one may take its place
      uint64_t used_at = 0;  // the larger, the later
      uint64_t filled = 0;   // slices
    };
    std::map<uint64_t, Segment> segments;  // by offset / kContent
  };
  struct Want {
    uint32_t slice;
    uint32_t count;
    uint32_t next = 0;      // slices of it that have been looked at
    bool enlarged = false;  // large pages were made for it, if there were any
  };
  struct Client {
    std::shared_ptr<Stored> layer;
    std::map<uint64_t, uint64_t> given;  // segments: the number of the instance
    std::deque<Want> wants;
  };
  struct Opening {
    uint64_t client;
    Layer layer;
  };

  CleanStore(uint64_t budget, Report report, protocol::Descriptor ends)
      : budget_(budget), report_(std::move(report)), ends_(std::move(ends)) {}
  static void* run(void* store);
  void serve();
  // Without `lock_`, on the store's thread.
  void open_now(const Opening& opening);
  Result<std::shared_ptr<Stored>> find(const Layer& layer);
  void serve_want(uint64_t client, const std::shared_ptr<Stored>& layer, Want want);
  void fill(Stored* layer, uint64_t slice, Want* want);
  Stored::Segment* make_segment(Stored* layer, uint64_t number);
  bool make_room();
  bool has_room();
  void let_go(const std::shared_ptr<Stored>& layer);
  void note();

  const uint64_t budget_;
  const Report report_;
  const protocol::Descriptor ends_;  // inotify: of the memory of segments
  pthread_t thread_{};

  mutable std::mutex lock_;  // guards the next members
  std::condition_variable changed_;
  bool ended_ = false;
  std::map<uint64_t, Client> clients_;
  std::deque<Opening> openings_;
  std::vector<std::shared_ptr<Stored>> released_;  // layers of clients that were forgotten
  uint64_t last_served_ = 0;                       // client
  Figures figures_;

  // The store's thread's.
  std::map<std::string, std::shared_ptr<Stored>> layers_;  // by key
  uint64_t clock_ = 0;
  std::vector<char> read_;      // the first slice of a segment, before the segment is made
  std::set<int> in_use_;        // the watches of segments whose memory is not free
  uint64_t full_until_ns_ = 0;  // no room was found: do not look for any before
};

}  // namespace pcow
