#include "addon/background.h"

#include <linux/ioprio.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pcow::addon {
namespace {

constexpr int kLowest = 19;

// On Linux each thread has its own priority, by its thread id.
void* thread_main(void* work) {
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kLowest);
  syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0));
  (*static_cast<const std::function<void()>*>(work))();
  return nullptr;
}

}  // namespace

void run_in_background(const std::function<void()>& work) {
  pthread_t thread;
  if (pthread_create(&thread, nullptr, thread_main, const_cast<std::function<void()>*>(&work)) != 0)
    return work();
  pthread_join(thread, nullptr);
}

}  // namespace pcow::addon
