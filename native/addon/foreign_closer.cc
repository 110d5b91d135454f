#include "addon/foreign_closer.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <utility>

namespace pcow::addon {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostThreads = 64;
constexpr int kMostThreadsOfUser = 8;
constexpr size_t kStuckOfUser = 2;  // this many slow closes are no accident
constexpr auto kLong = std::chrono::seconds(1);
constexpr auto kIdle = std::chrono::seconds(10);  // a thread without work ends after this time
constexpr size_t kStack = size_t{128} << 10;

}  // namespace

// Shared with the threads, which may outlive the ForeignCloser.
struct ForeignCloser::State {
  struct User {
    std::deque<protocol::Descriptor> waiting;
    std::list<Clock::time_point> closing;  // the start of each close in progress
    bool ready() const { return !waiting.empty() && closing.size() < kMostThreadsOfUser; }
  };

  std::map<uint32_t, User>::iterator next() {
    for (auto user = users.begin(); user != users.end(); ++user)
      if (user->second.ready()) return user;
    return users.end();
  }

  std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  std::map<uint32_t, User> users;  // users with descriptors that wait or are being closed
  int threads = 0;
  int idle = 0;
  bool ended = false;
};

ForeignCloser::ForeignCloser() : state_(std::make_shared<State>()) {}

ForeignCloser::~ForeignCloser() {
  const std::lock_guard guard(state_->mutex);
  state_->ended = true;
  state_->changed.notify_all();
}

void ForeignCloser::close(protocol::Descriptor descriptor, uint32_t uid) {
  if (!descriptor) return;
  const std::lock_guard guard(state_->mutex);
  State::User& user = state_->users[uid];
  user.waiting.push_back(std::move(descriptor));
  if (!user.ready()) return;  // one of the user's own closes must end first
  if (state_->idle == 0 && state_->threads < kMostThreads) start_thread(state_);
  state_->changed.notify_one();
}

bool ForeignCloser::refuses(uint32_t uid) const {
  const auto before = Clock::now() - kLong;
  const std::lock_guard guard(state_->mutex);
  const auto user = state_->users.find(uid);
  if (user == state_->users.end()) return false;
  size_t stuck = 0;
  for (const auto& since : user->second.closing) stuck += since < before;
  return stuck >= kStuckOfUser;
}

// state->mutex is held. If no thread can be started, the descriptor waits for the next call.
void ForeignCloser::start_thread(const std::shared_ptr<State>& state) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStack);
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  auto shared = std::make_unique<std::shared_ptr<State>>(state);
  pthread_t thread;
  if (pthread_create(&thread, &attributes, close_on_thread, shared.get()) == 0) {
    shared.release();
    state->threads++;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
}

void* ForeignCloser::close_on_thread(void* argument) {
  pthread_setname_np(pthread_self(), "pcow-close");
  const std::unique_ptr<std::shared_ptr<State>> shared(
      static_cast<std::shared_ptr<State>*>(argument));
  State& state = **shared;
  std::unique_lock lock(state.mutex);
  for (;;) {
    const auto user = state.next();
    if (user == state.users.end()) {
      state.idle++;
      const bool woken =
          !state.ended && state.changed.wait_for(lock, kIdle) == std::cv_status::no_timeout;
      state.idle--;
      if (woken || state.next() != state.users.end()) continue;
      state.threads--;
      return nullptr;
    }
    protocol::Descriptor descriptor = std::move(user->second.waiting.front());
    user->second.waiting.pop_front();
    const auto since = user->second.closing.insert(user->second.closing.end(), Clock::now());
    // This close may take long, so the next descriptor needs another thread.
    if (state.next() != state.users.end()) {
      if (state.idle == 0 && state.threads < kMostThreads) start_thread(*shared);
      state.changed.notify_one();
    }
    lock.unlock();
    descriptor.reset();
    lock.lock();
    user->second.closing.erase(since);
    if (user->second.waiting.empty() && user->second.closing.empty()) state.users.erase(user);
  }
}

}  // namespace pcow::addon
