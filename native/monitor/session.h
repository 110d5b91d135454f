// One attached image in this process: its engine, its userfaultfd, the thread that serves its page
// faults (fault.h), and all of its mappings.
//
// Threads: `handling` guards what the fault thread works on; the fault thread holds it while it
// serves a batch. The control thread (attachment.h) calls the steps of a snapshot, and holds
// `handling` from cut() to commit() or abort(). During that time the fault thread continues to read
// events (an mremap returns only when its event has been read), and keeps page faults for later.
// The registry (registry.h) calls map(), unmap(), sync() and discard() for threads of the
// application. All of these are threads of the monitor (threads.h). The demoting thread drops page
// cache in the background (demotion.h). The sharing thread shows memory of the mount's clean store
// (sharing.h). The moving thread brings scattered chunks into one piece (moving.h).
//
// Lock order: handling → the engine's locks, the locks of SharedBase and SharingQueue; demoting and
// Demotion's lock alone. The fault thread never waits for the mount.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "attach/fault_descriptor.h"
#include "engine/image/image.h"
#include "monitor/base_ranges.h"
#include "monitor/clean_cache.h"
#include "monitor/demotion.h"
#include "monitor/fault.h"
#include "monitor/fetches.h"
#include "monitor/mapper.h"
#include "monitor/moving.h"
#include "monitor/region.h"
#include "monitor/shared_base.h"
#include "monitor/sharing.h"
#include "monitor/stalls.h"
#include "monitor/statistics.h"
#include "monitor/threads.h"

namespace pcow {

class Session {
 public:
  struct Limits {
    // Shared by all sessions of this process:
    uint64_t clean_cache = 0;     // bytes of clean copies
    uint64_t mapping_budget = 0;  // mappings
    bool demote_always = false;   // tests: demotion.h
  };

  // Starts the fault thread. `layer`: of a snapshot, whose content is mapped; 0: the image's own.
  static Result<std::unique_ptr<Session>> start(std::unique_ptr<Image> image, const Limits& limits,
                                                uint64_t layer = 0);
  // Ends the fault thread. Nothing may be mapped, because a later fault would wait forever.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Image& image() { return *image_; }
  Statistics& statistics() { return statistics_; }
  bool writable() const { return writable_; }
  bool is_snapshot() const { return view_ != nullptr; }
  uint64_t size() const { return view_ ? image_->view_size(*view_) : image_->size(); }
  // Whether the image lies in persistent memory, and so is mapped with MAP_SYNC.
  bool is_persistent() const { return mapper_.is_synced(); }

  // Maps bytes [offset, offset + length) of the image. Addresses and lengths are whole pages, here
  // and below. Any thread of the monitor.
  Result<void*> map(size_t length, int protection, uint64_t offset);
  // Fails with kPermission if `protection` allows more than the session does.
  Result<void> check_protection(int protection) const;
  // mprotect(2) of the parts of the range that this session has mapped.
  Result<void> protect(void* address, size_t length, int protection);
  bool overlaps(const void* address, size_t length);
  bool is_idle();  // nothing is mapped
  // The part of a region in a range of addresses. `length` and `offset` are bytes; `offset` is in
  // the image.
  struct Part {
    char* address;
    size_t length;
    uint64_t offset;
    int protection;
  };
  std::vector<Part> parts(const void* address, size_t length);
  std::vector<Part> all_parts();
  // Removes the range from every region, and unmaps it in one call.
  Result<void> unmap(void* address, size_t length);
  // The same in steps, for one system call that removes mappings of several sessions, or puts
  // others there: hold(), prepare_removal(), then the system call, forget_removed() if it
  // succeeded, and let_go(). If a mapping of a session is put there, reserve_at() is the system
  // call, and add_region() follows forget_removed().
  void hold() { handling_.lock(); }
  void let_go() { release_handling(); }
  Result<void> prepare_removal(const char* from, const char* to);
  Result<void> reserve_at(void* address, size_t length, int protection) const;
  void forget_removed(char* from, char* to);
  void add_region(char* address, size_t length, uint64_t offset, int protection);
  Result<void> sync();
  // Afterwards bytes [offset, offset + length) read as zeros, in every mapping, too.
  Result<void> discard(uint64_t offset, uint64_t length);

  // The steps of a snapshot, all on the control thread.
  Result<void> prepare(const std::string& name, bool automatic);
  Result<void> cut();
  Result<void> commit();
  Result<void> finish();
  void abort();
  bool is_cut() const { return step_ == Step::kCut; }
  // Deletes a snapshot. On the control thread.
  Result<void> remove(const std::string& name);
  // Renames a snapshot. On the control thread. `names`: the old and the new name, separated by a
  // space.
  Result<void> rename_snapshot(const std::string& names);

  // Syncs and closes the image. Nothing may be mapped.
  void close();

  // `eventfd` is written whenever a read fails because a file of the image's chain was not handed
  // over. It must outlive the session.
  void tell_of_missing_bases(int eventfd) { stalls_.tell_of(eventfd); }
  // The bases that were missing. Faults that wait for them are then served.
  Result<void> give_bases(const std::vector<GivenFile>& bases) { return image_->give_bases(bases); }

  // The mount's clean store has the layer that the image stands on, with `size` bytes. From now on
  // `eventfd` is written whenever there is something to ask the mount for. It must outlive the
  // session.
  Result<void> offer_store(uint64_t size, int eventfd);
  SharedBase& shared() { return shared_; }
  Fetches& fetches() { return fetches_; }
  // The mount has answered: what the faults wait for is there, or why it is not.
  void take_fetched(uint32_t number, const std::string& why);
  // The mount has answered the want that began with this slice.
  void take_shared(uint64_t slice, protocol::Descriptor segment);

 private:
  // Holds `handling`. Its destructor tells the fault thread that it may try again.
  class Handling {
   public:
    explicit Handling(Session* session) : session_(session) { session_->handling_.lock(); }
    ~Handling() { session_->release_handling(); }
    Handling(const Handling&) = delete;
    Handling& operator=(const Handling&) = delete;

   private:
    Session* session_;
  };

  Session(std::unique_ptr<Image> image, std::shared_ptr<View> view, const ImageInfo& info,
          std::unique_ptr<FaultDescriptor> faults, const Limits& limits);
  void serve_faults();  // the fault thread
  bool read_events(std::deque<Fault>* waiting);
  bool await_fault(std::deque<Fault>* waiting);
  void release_handling();
  void demote();  // the demoting thread
  void end_demotions();
  bool zap(const std::vector<uint64_t>& windows);
  void move_chunks();  // the moving thread
  Result<void> move_chunk(uint64_t start);
  Result<bool> move_part(ChunkMove* move, uint64_t from, uint64_t to);
  Result<bool> replace_part(ChunkMove* move, uint64_t from, uint64_t to);
  void end_moving();
  void share();  // the sharing thread
  void end_sharing();
  struct Target {
    char* address;
    uint64_t from;
    uint64_t to;
    int protection;
  };
  std::optional<Target> target_of(const SharingQueue::Task& task);
  std::vector<Target> copies_in(uint64_t from, uint64_t to);
  void show(const Target& target);
  bool replace_copies();
  // With `handling` held.
  bool may_show(const Region& region) const;
  void put_in_place(char* made, const Target& target);
  void zap_chunk(const Region& region, uint64_t start, const std::vector<uint64_t>& windows);
  Result<void> replace(Region* region, uint64_t from, uint64_t to) const;
  void keep_part(Regions* kept, const Region& whole, char* from, char* to, int protection);
  void forget_chunks(Region* region);
  void forget_chunks(Region* region, uint64_t from, uint64_t to);
  void forget_part(Region* region, uint64_t from, uint64_t to);

  const std::unique_ptr<Image> image_;
  const std::shared_ptr<View> view_;  // of a snapshot; null: the image itself is mapped
  const std::unique_ptr<FaultDescriptor> faults_;
  const bool writable_;
  const RegionGeometry geometry_;
  const int wake_;  // eventfd: `handling` was released, or the fault thread must end
  Thread fault_thread_;
  std::atomic<bool> ended_{false};
  std::atomic<bool> fetched_{false};  // faults that wait are to be served again at once
  Statistics statistics_;
  Fetches fetches_;
  Stalls stalls_{&statistics_, &fetches_};

  SharedBase shared_{faults_.get()};
  SharingQueue sharing_;
  Thread sharing_thread_;  // runs once a store was offered

  Moving moving_;
  Thread moving_thread_;  // runs if it could be started

  std::mutex handling_;  // guards the next six members, and what they contain
  Regions regions_;
  BaseRanges base_;
  CleanCache clean_;
  Mapper mapper_;
  FaultServer faulting_;
  std::vector<Fault> given_back_;  // by the sharing thread: to be looked at again

  // The fault thread's: how many times in a row await_fault() found nothing or did not poll.
  uint32_t unsuccessful_ = 0;

  Demotion demotion_;
  Thread demoting_thread_;  // runs if it could be started
  std::mutex demoting_;     // guards the next two
  bool demoting_ended_ = false;
  bool demotions_wanted_ = false;
  std::condition_variable demoting_changed_;

  // The control thread's. (The demoting thread checks whether a snapshot is in progress.)
  enum class Step { kNone, kPrepared, kCut, kCommitted };
  std::atomic<Step> step_{Step::kNone};
  std::unique_ptr<PendingSnapshot> pending_;  // from kPrepared on
  uint64_t cut_since_ns_ = 0;
};

}  // namespace pcow
