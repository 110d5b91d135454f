// Reads with O_DIRECT into an image's memory. The device writes into pages that the kernel has
// pinned, even if other pages are mapped at that address by then. If a snapshot froze such a page
// in the meantime, the snapshot would change, and the reader would not find its bytes. Therefore a
// cut waits for the reads in progress, and new reads wait until the cut is over.
#pragma once

namespace pcow::direct_reads {

// One read, from before the system call until its return. Any thread of the application. The
// destructor also runs if the thread is cancelled.
class Read {
 public:
  Read();
  ~Read();
  Read(const Read&) = delete;
  Read& operator=(const Read&) = delete;
};

// Several callers may hold reads back at the same time. Each caller that got true must call
// go_on(). Returns false if the reads in progress take longer than `patience_ms`; reads then
// continue.
bool hold_back(int patience_ms);
void go_on();

}  // namespace pcow::direct_reads
