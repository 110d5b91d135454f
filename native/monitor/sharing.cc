#include "monitor/sharing.h"

#include <utility>

namespace pcow {

void SharingQueue::add(Task task) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  tasks_.push_back(task);
  changed_.notify_one();
}

std::optional<SharingQueue::Task> SharingQueue::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [this] { return ended_ || !tasks_.empty(); });
  if (ended_ || tasks_.empty()) return std::nullopt;
  const Task task = tasks_.front();
  tasks_.pop_front();
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
