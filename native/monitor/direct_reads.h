// Reads with O_DIRECT into an image's memory. The device writes into pages that the kernel has pinned, whatever is mapped there by
// the time it does: a page that a snapshot froze meanwhile would change, and the reader would not find its bytes. So a cut waits
// for the reads that are under way, and those that come are kept waiting until it is over.
#pragma once

namespace pcow::direct_reads {

// One read, from before the call until it has returned. Any thread of the application; the end comes also where the thread is
// cancelled.
class Read {
 public:
  Read();
  ~Read();
  Read(const Read&) = delete;
  Read& operator=(const Read&) = delete;
};

// Several callers may hold reads back at a time; each that was told true must say go_on(). false: those under way take longer than
// `patience_ms`, and reads go on.
bool hold_back(int patience_ms);
void go_on();

}  // namespace pcow::direct_reads
