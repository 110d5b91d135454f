// The userfaultfd of a session (userfaultfd(2), ioctl_userfaultfd(2)). It is never closed while
// anything is mapped: a thread that faults on a range whose userfaultfd is closed silently reads
// zeros.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/error.h"

namespace pcow {

class FaultDescriptor {
 public:
  // Opens /dev/userfaultfd, or else calls userfaultfd(2). The message of kPermission says how to
  // get the right.
  static Result<std::unique_ptr<FaultDescriptor>> open();
  ~FaultDescriptor();
  FaultDescriptor(const FaultDescriptor&) = delete;
  FaultDescriptor& operator=(const FaultDescriptor&) = delete;

  int descriptor() const { return descriptor_; }

  // Maps private anonymous memory, aligned to 2 MiB. Accesses to its missing pages and writes to
  // its protected pages are reported to this userfaultfd.
  Result<void*> reserve(size_t length, int protection) const;
  // Whether map_protected() works with this kernel.
  bool can_share() const { return can_share_; }
  // Maps a range of a memfd privately, anywhere, with its pages in the page tables: reading them
  // causes no event, and the first write to each is reported to this userfaultfd. All of the range
  // must be there.
  Result<char*> map_protected(int memory, uint64_t offset, size_t length, int protection) const;
  // Fills missing pages with a write-protected copy. Pages that are already there are left as they
  // are.
  Result<void> copy_protected(void* to, const void* from, size_t length) const;
  // Makes accesses to these pages, which are missing, raise SIGBUS (a KVM guest gets a machine
  // check). Returns false if the kernel does not support this (before Linux 6.6).
  bool poison(void* address, size_t length) const;
  void wake(void* address, size_t length) const;
  // Whether there are events to read.
  bool is_awaited() const;
  // Reads up to `count` events without blocking. Returns 0 if there are none.
  size_t read(struct uffd_msg* events, size_t count) const;

 private:
  FaultDescriptor(int descriptor, bool can_share)
      : descriptor_(descriptor), can_share_(can_share) {}
  Result<void> register_range(void* address, size_t length) const;

  const int descriptor_;
  const bool can_share_;
};

}  // namespace pcow
