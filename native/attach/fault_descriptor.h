// The userfaultfd of a session (userfaultfd(2), ioctl_userfaultfd(2)). Never closed while anything is mapped: a thread that
// faults on a range whose userfaultfd is closed silently reads zeros.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/error.h"

namespace pcow {

class FaultDescriptor {
 public:
  // /dev/userfaultfd, else the system call. kPermission names what grants the right.
  static Result<std::unique_ptr<FaultDescriptor>> open();
  ~FaultDescriptor();
  FaultDescriptor(const FaultDescriptor&) = delete;
  FaultDescriptor& operator=(const FaultDescriptor&) = delete;

  int descriptor() const { return descriptor_; }

  // A range of private anonymous memory whose missing pages and writes to protected pages come to us. Aligned to 2 MiB.
  Result<void*> reserve(size_t length, int protection) const;
  // Fills pages that are missing with a write-protected copy; pages that are there stay as they are.
  Result<void> copy_protected(void* to, const void* from, size_t length) const;
  // Whoever touches these pages, which are missing, gets SIGBUS from here on (of a KVM guest the guest: a machine check). false:
  // the kernel cannot (before Linux 6.6).
  bool poison(void* address, size_t length) const;
  void wake(void* address, size_t length) const;
  // Whether there are events to read.
  bool is_awaited() const;
  // Reads up to `count` events without blocking; 0: none.
  size_t read(struct uffd_msg* events, size_t count) const;

 private:
  explicit FaultDescriptor(int descriptor) : descriptor_(descriptor) {}
  const int descriptor_;
};

}  // namespace pcow
