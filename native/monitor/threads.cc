#include "monitor/threads.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "engine/disk/bus_guard.h"
#include "monitor/inside.h"

namespace pcow {
namespace {

constexpr int kMostWorkers = 64;
constexpr uint64_t kSliceNs = 100'000;  // the least that the kernel takes
// PIDFD_THREAD, Linux 6.9: the headers of a distribution are often older than its kernel
constexpr unsigned kPidfdThread = O_EXCL;

// Uses system calls directly, because the thread-local state of the hooks must not be used here.
void wait_while(std::atomic<uint32_t>* word, uint32_t value) {
  while (word->load(std::memory_order_acquire) == value)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

struct Start {
  std::function<void()> main;
  char name[16];
};

void* thread_main(void* argument) {
  const std::unique_ptr<Start> start(static_cast<Start*>(argument));
  const Inside inside;
  pthread_setname_np(pthread_self(), start->name);
  start->main();
  return nullptr;
}

// With signals blocked: a signal handler of the application might access an image, which waits for
// these very threads.
int create(pthread_t* thread, void* (*main)(void*), void* argument) {
  const SignalsHeld held;
  return pthread_create(thread, nullptr, main, argument);
}

// The tasks that wait, and the threads that serve them. Never destroyed: threads may ask until the
// process has ended.
struct Workers {
  // newest first; pushed without a lock, also by signal handlers
  std::atomic<threads::Task*> asked{nullptr};
  sem_t waiting;                      // counts the tasks; sem_post(3) is async-signal-safe
  std::mutex taking;                  // taken by workers only; guards the next member
  threads::Task* in_order = nullptr;  // oldest first
  std::atomic<int> idle{0};
  std::atomic<int> count{0};
  sem_t wanted;  // posted when a task leaves no worker idle

  threads::Task* take();
  void serve();
  void add_as_wanted();
};

// `begun_in` is the pid of the process to which these threads belong: a child of _Fork(3) or
// clone(2), for which no fork handler runs, has a copy of `workers`.
std::atomic<Workers*> workers{nullptr};
std::atomic<pid_t> begun_in{0};

threads::Task* Workers::take() {
  const std::lock_guard lock(taking);
  if (!in_order) {
    threads::Task* newest = asked.exchange(nullptr, std::memory_order_acquire);
    while (newest) in_order = std::exchange(newest, std::exchange(newest->next, in_order));
  }
  return std::exchange(in_order, in_order->next);
}

void Workers::serve() {
  for (idle++;;) {
    while (sem_wait(&waiting) < 0) continue;
    // A task may take long (a sync), or wait for another task: there must be a worker for the next
    // one.
    if (--idle == 0 && count < kMostWorkers) sem_post(&wanted);
    threads::Task* task = take();
    task->work(task);
    // Before the waiting thread continues and asks again: it needs no more workers than this one.
    idle++;
    task->done.store(1, std::memory_order_release);
    // The task's stack frame may be gone by now. Waking no thread is harmless.
    wake_all(&task->done);
  }
}

// Runs on a thread of its own. pthread_create(3) takes memory from the application's allocator, and
// the thread that holds the allocator's lock may be waiting for the very task that a worker would
// serve next. If no more threads can be made, tasks wait for the existing workers.
void Workers::add_as_wanted() {
  for (;;) {
    while (sem_wait(&wanted) < 0) continue;
    if (idle > 0 || count >= kMostWorkers) continue;
    Thread one_more;
    count++;
    if (!one_more.start("pcow-work", [this] { serve(); })) count--;
  }
}

// The first worker: it gets the table of descriptors and the root that all other threads then
// share.
struct First {
  Workers* workers;
  std::atomic<uint32_t> ready{0};
  Result<void> outcome;
};

// Whether the process has a filter of system calls (proc(5), "Seccomp"; QEMU's -sandbox,
// containers). The filter may kill a thread that makes a forbidden call, so the call cannot simply
// be tried.
bool is_filtered() {
  char text[4096];
  const int descriptor = open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const ssize_t length = read(descriptor, text, sizeof text - 1);
  close(descriptor);
  if (length <= 0) return false;
  text[length] = 0;
  const char* mode = strstr(text, "\nSeccomp:");
  return mode && atoi(mode + strlen("\nSeccomp:")) != 0;
}

int unshare_descriptors_and_root() {
  // With CLOSE_RANGE_UNSHARE the kernel does not copy the descriptors and then close them: close(2)
  // of some may wait for a filesystem.
  if (syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE) < 0) return errno;
  // The C library writes to these numbers, whatever file they are.
  for (int number = 0; number < 3; number++)
    if (open("/dev/null", O_RDWR | O_CLOEXEC) < 0) return errno;
  // Without a root of its own, the monitor cannot reach the next mount's socket after a chroot(2);
  // all else works.
  return is_filtered() || unshare(CLONE_FS) == 0 ? 0 : errno;
}

// A filter of system calls may forbid pidfd_getfd(2). Check this before any thread waits for the
// monitor, because without pidfd_getfd the monitor cannot write to standard error either. No
// descriptor has the number -1: EBADF means that the call is allowed.
Result<void> try_to_borrow() {
  if (threads::borrow(-1, getpid()) || errno == EBADF) return {};
  return system_error(
      errno,
      "the monitor may not borrow descriptors of this process: its filter of system calls (for "
      "example, "
      "of a container) must allow pidfd_open and pidfd_getfd (Linux 5.6 or newer is needed)");
}

void* first_main(void* argument) {
  auto* first = static_cast<First*>(argument);
  Workers* const own = first->workers;
  const Inside inside;
  pthread_setname_np(pthread_self(), "pcow-work");
  if (const int err = unshare_descriptors_and_root())
    first->outcome = system_error(
        err, "cannot give the monitor its own table of descriptors (Linux 5.9 or newer is needed)");
  if (first->outcome) first->outcome = try_to_borrow();
  Thread adding;
  if (first->outcome) first->outcome = adding.start("pcow-start", [own] { own->add_as_wanted(); });
  const bool serves = first->outcome.ok();
  first->ready.store(1, std::memory_order_release);
  wake_all(&first->ready);
  if (serves) own->serve();
  return nullptr;
}

Error no_thread(int err) {
  return system_error(
      err,
      "cannot start a thread of the monitor (see RLIMIT_NPROC and the control group's pids.max)");
}

}  // namespace

Result<void> Thread::start(const char* name, std::function<void()> main) {
  auto start = std::make_unique<Start>();
  start->main = std::move(main);
  snprintf(start->name, sizeof start->name, "%s", name);
  if (const int err = create(&thread_, thread_main, start.get())) return no_thread(err);
  (void)start.release();
  runs_ = true;
  return {};
}

void Thread::join() {
  if (std::exchange(runs_, false)) pthread_join(thread_, nullptr);
}

namespace threads {

Result<void> begin() {
  static std::mutex one_at_a_time;
  // No lock in a child: the lock may have been copied while it was held. If begin() runs twice
  // there, a few idle threads remain.
  std::unique_lock lock(one_at_a_time, std::defer_lock);
  if (begun_in == 0) lock.lock();
  if (begun()) return {};
  auto* made = new Workers;
  sem_init(&made->waiting, 0, 0);
  sem_init(&made->wanted, 0, 0);
  made->count = 1;
  First first{made, {}, {}};
  pthread_t thread;
  if (const int err = create(&thread, first_main, &first)) return no_thread(err);
  pthread_detach(thread);
  wait_while(&first.ready, 0);
  PCOW_TRY(std::move(first.outcome));
  workers = made;
  begun_in = getpid();
  return {};
}

void forget() { workers = nullptr; }

bool begun() { return workers.load() != nullptr && begun_in.load() == getpid(); }

bool is_own() { return Inside::active(); }

void ask_and_wait(Task* task) {
  Workers* const own = workers.load(std::memory_order_acquire);
  Task* newest = own->asked.load(std::memory_order_relaxed);
  do {
    task->next = newest;
  } while (!own->asked.compare_exchange_weak(newest, task, std::memory_order_release,
                                             std::memory_order_relaxed));
  sem_post(&own->waiting);
  wait_while(&task->done, 0);
}

void ask_for_short_slices() {
  // of <linux/sched/types.h>, which conflicts with <sched.h>
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) < 0 ||
      attributes.policy != 0)
    return;
  attributes.size = sizeof attributes;
  attributes.runtime = kSliceNs;
  (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

protocol::Descriptor borrow(int number, pid_t thread) {
  int pidfd = static_cast<int>(syscall(SYS_pidfd_open, thread, kPidfdThread));
  if (pidfd < 0) pidfd = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  const protocol::Descriptor process(pidfd);
  if (!process) return {};
  return protocol::Descriptor(
      static_cast<int>(syscall(SYS_pidfd_getfd, process.number(), number, 0)));
}

}  // namespace threads
}  // namespace pcow
