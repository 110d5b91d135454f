#include "monitor/sharing.h"

#include <utility>

namespace pcow {

void SharingQueue::add(Task task) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  (task.fault ? faults_ : others_).push_back(task);
  changed_.notify_one();
}

bool SharingQueue::is_empty() {
  const std::lock_guard lock(mutex_);
  return faults_.empty() && others_.empty();
}

std::optional<SharingQueue::Task> SharingQueue::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [this] { return ended_ || !faults_.empty() || !others_.empty(); });
  std::deque<Task>& tasks = faults_.empty() ? others_ : faults_;
  if (ended_ || tasks.empty()) return std::nullopt;
  const Task task = tasks.front();
  tasks.pop_front();
  return task;
}

void SharingQueue::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_one();
}

bool SharingQueue::ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

}  // namespace pcow
