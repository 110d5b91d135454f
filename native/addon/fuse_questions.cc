#include "addon/fuse_questions.h"

#include <cerrno>
#include <utility>

namespace pcow::addon {

FuseQuestions& FuseQuestions::instance() {
  static FuseQuestions& questions = *new FuseQuestions();
  return questions;
}

int FuseQuestions::ask(FuseQuestion::Kind kind, uint64_t fh, uint32_t pid) {
  FuseQuestion question{0, kind, fh, pid};
  std::future<int> answer;
  {
    const std::lock_guard guard(lock_);
    question.id = ++last_id_;
    answer = open_[question.id].get_future();
  }
  if (!ask_ || !ask_(question)) this->answer(question.id, -EBUSY);
  return answer.get();
}

void FuseQuestions::answer(uint64_t id, int result) {
  const std::lock_guard guard(lock_);
  auto question = open_.extract(id);
  if (!question.empty()) question.mapped().set_value(result);
}

}  // namespace pcow::addon
