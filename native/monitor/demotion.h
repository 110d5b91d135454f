// Small pages for files with scattered durable stores (docs/monitor.md, "Scattered durable
// stores").
//
// The kernel's page cache keeps a file in folios of up to 2 MiB. A store through a mapping dirties
// a whole folio, and the next sync writes all of it: megabytes reach the disk for 64 bytes. A
// *demotion* drops the folios of one *window* (2 MiB of the image's file, aligned) and reads them
// again in pages of 4 KiB.
//
// Which windows: before a sync, look() asks the kernel how many pages are dirty (cachestat(2),
// Linux 6.5; without it nothing is ever demoted). A window is wanted if it is dirty at several
// syncs that each write little, and sooner if these are scattered over the file. Whether that was
// right is seen afterwards, when pages are 4 KiB large: if most pages of a window are dirty again
// and again, the image is written in bulk, and is left alone for some time.
//
// Nothing can be lost, in whatever order things happen, and if the process dies in between: the
// kernel drops only pages that are clean and mapped nowhere, and what it reads again is what was
// there. If a page is dirty, or mapped again before it is dropped, its folio stays, and the window
// is looked at again.
//
// Threads: look() on any thread of the monitor that syncs; the others on the session's demoting
// thread.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "engine/image/image.h"
#include "monitor/statistics.h"

namespace pcow {

class Demotion {
 public:
  static constexpr uint64_t kWindow = kLargestRun;  // bytes

  // `useful`: stores into the image go through the page cache. `always` (tests): every window with
  // a page in the cache is wanted at every sync.
  Demotion(const Image* image, bool useful, bool always, Statistics* statistics);

  bool is_usable() const { return usable_; }
  // Before a sync. Returns whether a window is wanted.
  bool look();
  // The windows that are wanted, by their numbers (file offset / kWindow), ascending; none of them
  // is wanted afterwards.
  std::vector<uint64_t> take_wanted();
  // The caller has taken the window's pages out of all page tables of this process. Pages that are
  // not clean stay as they are.
  void demote(uint64_t window);

 private:
  struct Pages {
    uint64_t cached = 0;
    uint64_t dirty = 0;  // or being written back
  };
  struct Window {
    bool small = false;
    uint8_t demotions = 0;
    uint64_t points = 0;  // demotion.cc
  };

  bool kernel_can_tell() const;
  bool ask(uint64_t from, uint64_t to, Pages* pages) const;
  void find_dirty(uint64_t first, uint64_t end, std::vector<uint64_t>* dirty) const;
  std::vector<uint64_t> dirty_windows() const;
  void note(std::vector<uint64_t> dirty);
  void sample_demoted();

  const Image* const image_;
  const bool always_;
  Statistics* const statistics_;
  const bool usable_;

  std::mutex mutex_;                    // guards the rest
  std::map<uint64_t, Window> windows_;  // those about which anything is known
  std::vector<uint64_t> dirty_before_;  // windows, at the last check; ascending
  uint64_t rightly_demoted_ = 0;        // windows, since the last unsuccessful demotion
  std::vector<uint64_t> wanted_;
  uint64_t next_sample_ = 0;  // number of a window
  uint64_t next_look_ns_ = 0;
  uint64_t quiet_until_ns_ = 0;  // the image is written in bulk
};

}  // namespace pcow
