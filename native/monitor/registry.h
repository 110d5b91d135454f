// The images that are attached in this process, and what the interposed functions (hooks.cc) do
// with them.
//
// Threads: all methods run on threads of the monitor (threads.h). `changing` is held during every
// call that maps or unmaps, so that no thread maps an image that another thread is releasing. Lock
// order: changing → attached → a session's `handling`. Only the holder of `changing` takes the
// `handling` of several sessions, so their order does not matter.
#pragma once

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "monitor/attachment.h"
#include "monitor/footprint.h"
#include "monitor/offer.h"

namespace pcow {

class Registry {
 public:
  // Never destroyed: threads may use it until the process has ended.
  static Registry& instance();
  // In a child of fork(2): the images, their threads and their locks belong to the parent.
  static void forget();

  // The arguments of an mmap(2) by a thread of the application. `length` is in whole pages.
  struct MapCall {
    void* address;
    size_t length;
    int protection;
    int flags;
    int descriptor;  // in the application's table
    off_t offset;
    pid_t thread;
  };
  // The result of an interposed function: an errno (0: none) with MAP_FAILED, or an address.
  struct Outcome {
    int err = 0;
    void* address = nullptr;
  };
  // Makes a shared mapping of a flat file, or of the file of a snapshot. `offer`: of its mount;
  // empty if the file seemed to be attached already, which needs no mount. `access`: O_ACCMODE of
  // the descriptor.
  Outcome map_flat_file(const Offer& offer, const footprint::OpenFile& file, int access,
                        MapCall call);
  // All other calls that replace or remove mappings of images: mmap(2) with MAP_FIXED, mremap(2)
  // with MREMAP_FIXED, munmap(2).
  Outcome map_over(const MapCall& call);
  Outcome move_over(void* old, size_t old_length, size_t length, int flags, void* target);
  Outcome unmap(void* address, size_t length);

  Outcome protect(void* address, size_t length, int protection);
  // msync(2) and MADV_REMOVE: the parts of the range that are not images go to the kernel.
  Outcome sync_range(void* address, size_t length, int flags);
  Outcome remove_range(void* address, size_t length);
  // For a flat file: fdatasync(2), and fallocate(2) with FALLOC_FL_PUNCH_HOLE or
  // FALLOC_FL_ZERO_RANGE. Return false if the file is not attached.
  bool sync_file(const footprint::OpenFile& file, Outcome* outcome);
  bool discard_file(const footprint::OpenFile& file, uint64_t offset, uint64_t length,
                    Outcome* outcome);
  // Whether an open file is a flat file of an attached image that is not known yet: after the mount
  // has died, the next mount has another flat file of the image. From then on the file is known.
  // `descriptor`: in the table of the application's `thread`.
  bool learn(const footprint::OpenFile& file, int descriptor, pid_t thread);
  void sync_all();

 private:
  struct Attached {
    std::vector<footprint::OpenFile>
        // flat files of the image, in its mount and in the mounts that followed it
        files;
    std::shared_ptr<Attachment> attachment;
    Session& session() const { return attachment->session(); }
  };
  // A range of addresses that belongs to one session, or (null) to none.
  struct Stretch {
    Attached attached;
    char* address;
    size_t length;
    uint64_t offset;  // in the image
    int protection;
  };

  std::vector<Attached> all();
  std::shared_ptr<Session> session_of(const footprint::OpenFile& file);
  std::vector<Stretch> stretches(void* address, size_t length);
  struct Addition {
    Session* session;
    size_t length;    // from the beginning of the range
    uint64_t offset;  // in the image
    int protection;
  };
  template <typename Call>
  Outcome replace_range(void* address, size_t length, const Call& call, const Addition* added);
  std::shared_ptr<Session> learn(const footprint::OpenFile& file, int descriptor);
  Outcome attach(const Offer& offer, const footprint::OpenFile& file, int descriptor, bool write);
  Outcome map_attached(Session* session, const MapCall& call, int descriptor);
  void publish();
  void let_go_of_idle();

  std::mutex changing_;
  std::mutex attached_lock_;  // guards the next
  std::vector<Attached> attached_;
};

}  // namespace pcow
