#include "attach/fault_descriptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "attach/system_calls.h"

namespace pcow {
namespace {

constexpr uint64_t kFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP;
// As in <linux/userfaultfd.h> of Linux 5.19: write protection of shared memory, also of pages that
// are not there.
constexpr uint64_t kSharing = UFFD_FEATURE_MISSING_SHMEM | uint64_t{1} << 12;
constexpr size_t kAlignment = size_t{2} << 20;

int open_userfaultfd(int* err) {
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    const int descriptor = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    *err = errno;
    close(device);
    if (descriptor >= 0) return descriptor;
  }
  // No UFFD_USER_MODE_ONLY: the accesses of the kernel itself (KVM, vhost, read(2) into guest
  // memory) must be served, too.
  const int descriptor = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (descriptor < 0) *err = errno;
  return descriptor;
}

}  // namespace

Result<std::unique_ptr<FaultDescriptor>> FaultDescriptor::open() {
  int err = 0;
  const int descriptor = open_userfaultfd(&err);
  if (descriptor < 0) {
    if (err == EPERM || err == EACCES)
      return Error(
          Code::kPermission, err,
          "this user may not use userfaultfd: as root, give the right to one of the user's groups, "
          "\"chgrp kvm /dev/userfaultfd && chmod 660 /dev/userfaultfd\" (Pcow's udev rule "
          "60-pcow.rules does that "
          "at each boot), or to every user, \"sysctl vm.unprivileged_userfaultfd=1\"; "
          "a guest of libvirt also needs /dev/userfaultfd in cgroup_device_acl of qemu.conf");
    return system_error(
        err, err == ENOSYS ? "this kernel has no userfaultfd" : "cannot make a userfaultfd");
  }
  struct uffdio_api api = {};
  const auto shake_hands = [&](uint64_t features) {
    api = {};
    api.api = UFFD_API;
    api.features = features;
    return ioctl(descriptor, UFFDIO_API, &api) == 0;
  };
  const bool can_share = shake_hands(kFeatures | kSharing);
  if (!can_share && !shake_hands(kFeatures)) {
    err = errno;
    close(descriptor);
    return system_error(err,
                        "this kernel's userfaultfd cannot write-protect or follow mremap (Linux "
                        "5.7 or newer is needed)");
  }
  return std::unique_ptr<FaultDescriptor>(new FaultDescriptor(descriptor, can_share));
}

FaultDescriptor::~FaultDescriptor() { close(descriptor_); }

Result<void*> FaultDescriptor::reserve(size_t length, int protection) const {
  const size_t roomy = length + kAlignment;
  void* found =
      system_mmap(nullptr, roomy, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return system_error(errno, "cannot reserve address space for the image");
  const auto start = reinterpret_cast<uintptr_t>(found);
  const uintptr_t aligned = (start + kAlignment - 1) / kAlignment * kAlignment;
  if (aligned > start) system_munmap(found, aligned - start);
  system_munmap(reinterpret_cast<void*>(aligned + length), start + roomy - aligned - length);
  void* address = reinterpret_cast<void*>(aligned);
  if (auto registered = register_range(address, length); !registered) {
    system_munmap(address, length);
    return registered.error();
  }
  return address;
}

Result<void> FaultDescriptor::register_range(void* address, size_t length) const {
  // A child of fork(2) has no userfaultfd and would read zeros. Therefore it does not get the
  // mapping: accessing it there raises SIGSEGV.
  if (system_madvise(address, length, MADV_DONTFORK) < 0)
    return system_error(errno, "cannot keep the image's mapping from children of this process");
  struct uffdio_register whole = {};
  whole.range = {reinterpret_cast<uintptr_t>(address), length};
  whole.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
  if (ioctl(descriptor_, UFFDIO_REGISTER, &whole) < 0)
    return system_error(errno, "cannot register the reservation with userfaultfd");
  return {};
}

Result<char*> FaultDescriptor::map_protected(int memory, uint64_t offset, size_t length,
                                             int protection) const {
  // Where a large page of the memfd cannot be mapped as one: to write-protect it, the kernel would
  // take it out of the page tables, and each page would cause a fault of its own.
  const size_t roomy = length + 4096;
  void* room =
      system_mmap(nullptr, roomy, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return system_error(errno, "cannot map shared memory");
  const bool is_aligned = (reinterpret_cast<uintptr_t>(room) - offset) % kAlignment == 0;
  char* const start = static_cast<char*>(room) + (is_aligned ? 4096 : 0);
  system_munmap(is_aligned ? room : start + length, 4096);
  void* found = system_mmap(start, length, protection, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED,
                            memory, static_cast<off_t>(offset));
  if (found == MAP_FAILED) {
    const int err = errno;
    system_munmap(start, length);
    return system_error(err, "cannot map shared memory");
  }
  // Populated before it is registered: a page that is missing after that is an event, for which the
  // kernel would keep this thread waiting.
  Result<void> outcome;
  if (system_madvise(found, length, MADV_POPULATE_READ) < 0)
    outcome = system_error(errno, "cannot read shared memory");
  if (outcome) outcome = register_range(found, length);
  struct uffdio_writeprotect whole = {};
  whole.range = {reinterpret_cast<uintptr_t>(found), length};
  whole.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  if (outcome && ioctl(descriptor_, UFFDIO_WRITEPROTECT, &whole) < 0)
    outcome = system_error(errno, "cannot write-protect shared memory");
  if (outcome) return static_cast<char*>(found);
  system_munmap(found, length);
  return outcome.error();
}

Result<void> FaultDescriptor::copy_protected(void* to, const void* from, size_t length) const {
  // The kernel copies into one of its mappings at a time. The application may have split ours (by
  // madvise, mbind, mlock2 or prctl). Where the range spans several mappings, copy page by page.
  size_t most = length;
  for (size_t done = 0; done < length;) {
    struct uffdio_copy copy = {};
    copy.dst = reinterpret_cast<uintptr_t>(to) + done;
    copy.src = reinterpret_cast<uintptr_t>(from) + done;
    copy.len = std::min(length - done, most);
    copy.mode = UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE;
    if (ioctl(descriptor_, UFFDIO_COPY, &copy) == 0) {
      done += copy.len;
    } else if (copy.copy > 0) {
      done += static_cast<size_t>(copy.copy);
    } else if (errno == EEXIST) {
      done += 4096;  // this page is already there
    } else if (errno == ENOENT && most > 4096) {
      most = 4096;
    } else if (errno != EAGAIN) {
      return system_error(errno, "cannot copy pages into the guest's memory");
    }
  }
  return {};
}

bool FaultDescriptor::poison(void* address, size_t length) const {
  // As in <linux/userfaultfd.h> of Linux 6.6: the headers of a distribution are often older than
  // its kernel.
  struct {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
  } request = {{reinterpret_cast<uintptr_t>(address), length}, 0, 0};
  constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, decltype(request));
  if (ioctl(descriptor_, kPoison, &request) < 0) return false;
  wake(address, length);
  return true;
}

void FaultDescriptor::wake(void* address, size_t length) const {
  struct uffdio_range range = {reinterpret_cast<uintptr_t>(address), length};
  ioctl(descriptor_, UFFDIO_WAKE, &range);
}

bool FaultDescriptor::is_awaited() const {
  struct pollfd ready = {descriptor_, POLLIN, 0};
  return poll(&ready, 1, 0) > 0;
}

size_t FaultDescriptor::read(struct uffd_msg* events, size_t count) const {
  const ssize_t length = ::read(descriptor_, events, count * sizeof *events);
  return length > 0 ? static_cast<size_t>(length) / sizeof *events : 0;
}

}  // namespace pcow
