// One attached image in this process: its engine, its userfaultfd, the thread that serves its page faults (each as fault.h has it), and
// every mapping of it.
//
// Threads: the fault thread owns nothing alone; what it works on is guarded by `handling`, which it holds while it serves
// a batch. The control thread (attachment.h) calls the steps of a snapshot and holds `handling` from cut() to commit() or
// abort(): meanwhile the fault thread goes on reading events (an mremap returns only when its event has been read), and
// puts page faults aside. The registry (registry.h) calls map(), unmap(), sync(), discard() for threads of the application. All of
// them are threads of the monitor (threads.h). The demoting thread drops page cache in the background (demotion.h).
//
// Lock order: handling → the engine's locks; demoting and Demotion's lock alone. Nothing on the fault path waits for the mount.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/clean_cache.h"
#include "monitor/demotion.h"
#include "monitor/fault.h"
#include "monitor/mapper.h"
#include "monitor/region.h"
#include "monitor/stalls.h"
#include "monitor/statistics.h"
#include "monitor/threads.h"

namespace pcow {

class Session {
 public:
  struct Limits {
    // For all sessions of this process together:
    uint64_t clean_cache = 0;     // bytes of clean copies
    uint64_t mapping_budget = 0;  // mappings
    bool demote_always = false;   // tests: demotion.h
  };

  // Starts the fault thread.
  static Result<std::unique_ptr<Session>> start(std::unique_ptr<Image> image, const Limits& limits);
  // Ends the fault thread: only when nothing is mapped, for who faults later would wait for ever.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Image& image() { return *image_; }
  Statistics& statistics() { return statistics_; }
  bool writable() const { return writable_; }

  // A mapping of bytes [offset, offset + length) of the image. Addresses and lengths are whole pages, here and below. Any thread of the
  // monitor.
  Result<void*> map(size_t length, int protection, uint64_t offset);
  // kPermission where it asks for more than the session has.
  Result<void> check_protection(int protection) const;
  // mprotect(2) of the range, as far as it is mapped here.
  Result<void> protect(void* address, size_t length, int protection);
  bool overlaps(const void* address, size_t length);
  bool is_idle();  // nothing is mapped
  // What lies in a range of addresses, as a range of the image, bytes.
  struct Part {
    char* address;
    size_t length;
    uint64_t offset;
    int protection;
  };
  std::vector<Part> parts(const void* address, size_t length);
  std::vector<Part> all_parts();
  // Cuts the range out of every mapping, and unmaps it in one call.
  Result<void> unmap(void* address, size_t length);
  // The same in steps, where one call of the kernel's takes mappings of several sessions away, or puts something in their place:
  // hold(), prepare_removal(), then that call, forget_removed() where it succeeded, and let_go(). What comes there may be a mapping of
  // a session: reserve_at() is the call then, and add_region() follows forget_removed().
  void hold() { handling_.lock(); }
  void let_go() { release_handling(); }
  Result<void> prepare_removal(const char* from, const char* to);
  Result<void> reserve_at(void* address, size_t length, int protection) const;
  void forget_removed(char* from, char* to);
  void add_region(char* address, size_t length, uint64_t offset, int protection);
  Result<void> sync();
  // Bytes [offset, offset + length) read as zeros afterwards, in every mapping too.
  Result<void> discard(uint64_t offset, uint64_t length);

  // The steps of a snapshot, all on the control thread.
  Result<void> prepare(const std::string& name, bool automatic);
  Result<void> cut();
  Result<void> commit();
  Result<void> finish();
  void abort();
  bool is_cut() const { return step_ == Step::kCut; }
  // Deletes a snapshot; the control thread as well.
  Result<void> remove(const std::string& name);
  // Gives one another name; there as well. `names`: the old and the new one, with a space between.
  Result<void> rename_snapshot(const std::string& names);

  // Syncs and closes the image: only when nothing is mapped.
  void close();

  // `eventfd` is written to whenever something cannot be read because a file of the image's chain was not handed over. It
  // outlives the session.
  void tell_of_missing_bases(int eventfd) { stalls_.tell_of(eventfd); }
  // What was missing: whoever waits goes on.
  Result<void> give_bases(const std::vector<GivenFile>& bases) { return image_->give_bases(bases); }

 private:
  // Holds `handling`; on the way out the fault thread is told that it may look again.
  class Handling {
   public:
    explicit Handling(Session* session) : session_(session) { session_->handling_.lock(); }
    ~Handling() { session_->release_handling(); }
    Handling(const Handling&) = delete;
    Handling& operator=(const Handling&) = delete;

   private:
    Session* session_;
  };

  Session(std::unique_ptr<Image> image, std::unique_ptr<FaultDescriptor> faults, const Limits& limits);
  void serve_faults();  // the fault thread
  bool read_events(std::deque<Fault>* waiting);
  bool await_fault(std::deque<Fault>* waiting);
  void release_handling();
  void demote();  // the demoting thread
  void end_demotions();
  bool zap(const std::vector<uint64_t>& windows);
  // With `handling` held.
  void zap_chunk(const Region& region, uint64_t start, const std::vector<uint64_t>& windows);
  Result<void> replace(Region* region, uint64_t from, uint64_t to) const;
  void keep_part(Regions* kept, const Region& whole, char* from, char* to, int protection);
  void drop_books(Region* region);
  void drop_books(Region* region, uint64_t from, uint64_t to);

  const std::unique_ptr<Image> image_;
  const std::unique_ptr<FaultDescriptor> faults_;
  const bool writable_;
  const RegionGeometry geometry_;
  const int wake_;  // eventfd: `handling` was released, or the fault thread is to end
  Thread fault_thread_;
  std::atomic<bool> ended_{false};
  Statistics statistics_;
  Stalls stalls_{&statistics_};

  std::mutex handling_;  // guards the next four, and what is in them
  Regions regions_;
  CleanCache clean_;
  Mapper mapper_;
  FaultServer faulting_;

  // The fault thread's: how often in a row await_fault() came to nothing, or was not tried after that.
  uint32_t in_vain_ = 0;

  Demotion demotion_;
  Thread demoting_thread_;  // runs if it could be started
  std::mutex demoting_;     // guards the next two
  bool demoting_ended_ = false;
  bool demotions_wanted_ = false;
  std::condition_variable demoting_changed_;

  // The control thread's. (The demoting thread looks whether a snapshot is under way.)
  enum class Step { kNone, kPrepared, kCut, kCommitted };
  std::atomic<Step> step_{Step::kNone};
  std::unique_ptr<PendingSnapshot> pending_;  // from kPrepared on
  uint64_t cut_since_ns_ = 0;
};

}  // namespace pcow
