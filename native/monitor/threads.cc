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
constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9: headers of distributions are older than kernels

// The kernel's own system calls, since the hooks' thread-local state must not be asked here.
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

// Signals are the application's business: one of its handlers might touch an image, which waits for these very threads.
int create(pthread_t* thread, void* (*main)(void*), void* argument) {
  const SignalsHeld held;
  return pthread_create(thread, nullptr, main, argument);
}

// Tasks that wait, and the threads that take them. Never destroyed: threads may ask until the very end of the process.
struct Workers {
  std::atomic<threads::Task*> asked{nullptr};  // newest first. Pushed to without a lock: also by signal handlers
  sem_t waiting;                               // counts the tasks; sem_post(3) is async-signal-safe
  std::mutex taking;                           // the workers' alone; guards the next
  threads::Task* in_order = nullptr;           // oldest first
  std::atomic<int> idle{0};
  std::atomic<int> count{0};
  sem_t wanted;  // posted where a task leaves no worker idle

  threads::Task* take();
  void serve();
  void add_as_wanted();
};

// `begun` is the pid of the process whose threads these are: a child of _Fork(3) or clone(2), of which no handler tells, has a
// copy of it.
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
    // A task may take long (a sync), or wait for another one: somebody must be there for the next.
    if (--idle == 0 && count < kMostWorkers) sem_post(&wanted);
    threads::Task* task = take();
    task->work(task);
    // Before whoever waits for it goes on, and asks again: it needs no more workers than this one.
    idle++;
    task->done.store(1, std::memory_order_release);
    // Its stack frame may be gone by now; to wake nobody does no harm.
    wake_all(&task->done);
  }
}

// A thread for nothing else: pthread_create(3) takes memory from the application's allocator, and whoever holds the lock of that may be
// waiting for the very task that a worker would do next. Where there can be no more threads, tasks wait for the workers that there are.
void Workers::add_as_wanted() {
  for (;;) {
    while (sem_wait(&wanted) < 0) continue;
    if (idle > 0 || count >= kMostWorkers) continue;
    Thread one_more;
    count++;
    if (!one_more.start("pcow-work", [this] { serve(); })) count--;
  }
}

// The first one: it takes the table of descriptors, and the root, that all others then share.
struct First {
  Workers* workers;
  std::atomic<uint32_t> ready{0};
  Result<void> outcome;
};

// Whether a filter of system calls is there (proc(5), "Seccomp"; QEMU's -sandbox, containers). It may end a thread that does what it does not
// allow, so that cannot be tried.
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

int take_own_place() {
  // With CLOSE_RANGE_UNSHARE, descriptors are not copied first and then closed: close(2) of some may wait for a filesystem.
  if (syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE) < 0) return errno;
  // The C library writes to these numbers, whatever has them.
  for (int number = 0; number < 3; number++)
    if (open("/dev/null", O_RDWR | O_CLOEXEC) < 0) return errno;
  // Without a root of their own the mount's next socket is out of reach after a chroot(2), and all else works.
  return is_filtered() || unshare(CLONE_FS) == 0 ? 0 : errno;
}

// A filter of system calls may keep pidfd_getfd(2) from this process. Asked before anybody waits for a thread of the monitor, as that could
// not reach standard error, either. No descriptor has this number, and the kernel says so where it may be asked.
Result<void> try_to_borrow() {
  if (threads::borrow(-1, getpid()) || errno == EBADF) return {};
  return system_error(errno,
                      "the monitor may not take descriptors of this process over: a filter of system calls, as of a "
                      "container, must allow pidfd_open and pidfd_getfd (Linux 5.6 or newer is needed)");
}

void* first_main(void* argument) {
  auto* first = static_cast<First*>(argument);
  Workers* const own = first->workers;
  const Inside inside;
  pthread_setname_np(pthread_self(), "pcow-work");
  if (const int err = take_own_place())
    first->outcome = system_error(err, "cannot give the monitor descriptors of its own (Linux 5.9 or newer is needed)");
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
  return system_error(err,
                      "cannot start a thread of the monitor (see RLIMIT_NPROC, and pids.max of the control group)");
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
  // Not in a child: it may have been copied while it was held. What begins twice there leaves a few idle threads more.
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
  } while (!own->asked.compare_exchange_weak(newest, task, std::memory_order_release, std::memory_order_relaxed));
  sem_post(&own->waiting);
  wait_while(&task->done, 0);
}

protocol::Descriptor borrow(int number, pid_t thread) {
  int pidfd = static_cast<int>(syscall(SYS_pidfd_open, thread, kPidfdThread));
  if (pidfd < 0) pidfd = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  const protocol::Descriptor process(pidfd);
  if (!process) return {};
  return protocol::Descriptor(static_cast<int>(syscall(SYS_pidfd_getfd, process.number(), number, 0)));
}

}  // namespace threads
}  // namespace pcow
