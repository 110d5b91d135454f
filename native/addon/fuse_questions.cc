#include "addon/fuse_questions.h"

#include <poll.h>
#include <signal.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>

namespace pcow::addon {

namespace {

// How often a long wait looks whether it is still of use.
constexpr std::chrono::seconds kLook(1);

// Whether the thread is about to die: the kernel gives a fatal signal to all threads as SIGKILL.
// FUSE itself reports only the first signal of a request, which need not be fatal.
bool is_killed(uint32_t pid) {
  if (pid == 0) return false;
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  const std::string field = "SigPnd:";
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field, 0) != 0) continue;
    return std::stoull(line.substr(field.size()), nullptr, 16) >> (SIGKILL - 1) & 1;
  }
  return false;
}

bool is_mounted(int channel) {
  pollfd look = {channel, 0, 0};
  return poll(&look, 1, 0) <= 0 || !(look.revents & POLLERR);
}

}  // namespace

FuseQuestions& FuseQuestions::instance() {
  static FuseQuestions& questions = *new FuseQuestions();
  return questions;
}

std::future<int> FuseQuestions::put(FuseQuestion* question) {
  std::future<int> answer;
  {
    const std::lock_guard guard(lock_);
    question->id = ++last_id_;
    answer = open_[question->id].get_future();
  }
  if (!ask_ || !ask_(*question)) this->answer(question->id, -EBUSY);
  return answer;
}

int FuseQuestions::ask(FuseQuestion::Kind kind, uint64_t fh, uint32_t pid) {
  FuseQuestion question{0, kind, fh, pid};
  return put(&question).get();
}

int FuseQuestions::fetch(std::shared_ptr<const RemoteBlock> remote, uint32_t pid) {
  FuseQuestion question{0, FuseQuestion::Kind::kFetch, 0, pid, std::move(remote)};
  auto answer = put(&question);
  while (answer.wait_for(kLook) != std::future_status::ready) {
    if (is_mounted(channel_.load()) && !is_killed(pid)) continue;
    const std::lock_guard guard(lock_);
    open_.erase(question.id);
    return -EINTR;
  }
  return answer.get();
}

void FuseQuestions::answer(uint64_t id, int result) {
  const std::lock_guard guard(lock_);
  auto question = open_.extract(id);
  if (!question.empty()) question.mapped().set_value(result);
}

}  // namespace pcow::addon
