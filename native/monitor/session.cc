#include "monitor/session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <bit>
#include <utility>

#include "attach/system_calls.h"
#include "monitor/log.h"

namespace pcow {
namespace {

constexpr uint64_t kStallRetryMs = 100;
constexpr uint64_t kAwaitNs = 30'000;
constexpr uint32_t kMostUnsuccessful = 4;  // times in a row
constexpr uint32_t kTryAgain = 16;         // … after that, every so many times

RegionGeometry region_geometry(const ImageInfo& info) {
  const auto sub_block_shift = static_cast<uint32_t>(std::countr_zero(info.sub_block_size));
  const auto block_shift = static_cast<uint32_t>(std::countr_zero(info.block_size));
  return {sub_block_shift, block_shift + 9};
}

}  // namespace

Session::Session(std::unique_ptr<Image> image, std::shared_ptr<View> view, const ImageInfo& info,
                 std::unique_ptr<FaultDescriptor> faults, const Limits& limits)
    : image_(std::move(image)),
      view_(std::move(view)),
      faults_(std::move(faults)),
      writable_(info.writable),
      geometry_(region_geometry(info)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      base_(image_.get(), view_.get(), geometry_, writable_),
      clean_(image_.get(), view_.get(), faults_.get(), geometry_, regions_, limits.clean_cache,
             writable_, &statistics_),
      mapper_(image_.get(), info.persistent, faults_.get(), geometry_, regions_,
              limits.mapping_budget, &base_, &clean_, &moving_, &stalls_, &statistics_),
      faulting_(image_.get(), faults_.get(), geometry_, regions_, &base_, &clean_, &mapper_,
                &shared_, &sharing_, &stalls_, &statistics_, writable_),
      // Persistent memory has no page cache.
      demotion_(image_.get(), info.writable && !info.persistent, limits.demote_always,
                &statistics_) {}

Result<std::unique_ptr<Session>> Session::start(std::unique_ptr<Image> image, const Limits& limits,
                                                uint64_t layer) {
  auto faults = FaultDescriptor::open();
  if (!faults) return faults.error();
  const ImageInfo info = image->info();
  std::shared_ptr<View> view;
  if (layer) {
    auto found = image->view_of_layer(layer);
    if (!found) return found.error();
    view = std::move(*found);
  }
  std::unique_ptr<Session> session(
      new Session(std::move(image), std::move(view), info, std::move(*faults), limits));
  if (session->wake_ < 0) return system_error(errno, "cannot make an eventfd");
  PCOW_TRY(session->fault_thread_.start("pcow-faults",
                                        [serving = session.get()] { serving->serve_faults(); }));
  // If no more threads can be made, nothing is demoted: only speed is lost.
  if (session->demotion_.is_usable())
    (void)session->demoting_thread_.start("pcow-demote",
                                          [demoting = session.get()] { demoting->demote(); });
  // Without it, chunks are completed where they lie.
  if (session->writable_)
    (void)session->moving_thread_.start("pcow-move",
                                        [moving = session.get()] { moving->move_chunks(); });
  return session;
}

Session::~Session() {
  end_demotions();
  end_moving();
  end_sharing();
  ended_ = true;
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
  fault_thread_.join();
  if (wake_ >= 0) ::close(wake_);
}

void Session::release_handling() {
  handling_.unlock();
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

// Returns false if there was none.
bool Session::read_events(std::deque<Fault>* waiting) {
  struct uffd_msg events[64];
  size_t all = 0;
  for (size_t count = 64; count == 64; all += count) {
    count = faults_->read(events, 64);
    const uint64_t now = count ? monotonic_ns() : 0;
    for (size_t i = 0; i < count; i++) {
      if (events[i].event != UFFD_EVENT_PAGEFAULT) continue;  // a remap: it only has to be read
      const auto& fault = events[i].arg.pagefault;
      waiting->push_back({reinterpret_cast<char*>(fault.address & ~uint64_t{4095}),
                          (fault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)) != 0,
                          now});
    }
  }
  return all > 0;
}

// Faults come in bursts, and waking this thread takes longer than serving a fault. So the thread
// polls for a moment after the last fault. Do not call sched_yield(): it lowers the thread's
// priority and delays it by milliseconds. After several unsuccessful polls, sleep immediately: the
// faulting thread may be waiting for this processor. Returns false if no fault came.
bool Session::await_fault(std::deque<Fault>* waiting) {
  if (unsuccessful_ >= kMostUnsuccessful && ++unsuccessful_ % kTryAgain != 0) return false;
  for (const uint64_t end = monotonic_ns() + kAwaitNs; monotonic_ns() < end;) {
    if (read_events(waiting)) {
      unsuccessful_ = 0;
      return true;
    }
  }
  unsuccessful_++;
  return false;
}

// The fault thread. It always reads events, even while another thread holds `handling`, because an
// mremap in progress waits until its event is read. It serves page faults only while it holds
// `handling` itself.
void Session::serve_faults() {
  threads::ask_for_short_slices();
  std::deque<Fault> waiting;
  std::deque<Fault> stalled;  // and those that wait for fetches
  uint64_t retry_at = 0;
  uint64_t fetching = 0;
  bool served = false;
  const auto makes_way = [this] { return moving_.asks_for_handling() || mapper_.waits_for_move(); };
  while (!ended_) {
    if (!served || !await_fault(&waiting)) {
      struct pollfd ready[] = {{faults_->descriptor(), POLLIN, 0}, {wake_, POLLIN, 0}};
      poll(ready, 2, stalled.empty() && waiting.empty() ? -1 : static_cast<int>(kStallRetryMs));
      uint64_t ignored;
      if (ready[1].revents) (void)!read(wake_, &ignored, sizeof ignored);
    }
    (void)read_events(&waiting);
    served = false;
    // Who holds or gets `handling` writes to `wake_` when it releases it.
    if (makes_way() || !handling_.try_lock()) continue;
    waiting.insert(waiting.end(), given_back_.begin(), given_back_.end());
    given_back_.clear();
    if (!stalled.empty() && (fetched_.exchange(false) || monotonic_ns() >= retry_at)) {
      waiting.insert(waiting.begin(), stalled.begin(), stalled.end());
      stalled.clear();
      fetching = 0;
    }
    while (!waiting.empty() && !makes_way()) {
      served = true;
      const FaultServer::Outcome outcome = faulting_.serve(waiting.front());
      if (outcome != FaultServer::Outcome::kServed) {
        fetching += outcome == FaultServer::Outcome::kFetching;
        if (stalled.empty()) retry_at = monotonic_ns() + kStallRetryMs * 1'000'000;
        stalled.push_back(waiting.front());
      }
      waiting.pop_front();
    }
    handling_.unlock();
    statistics_.stalled_now = stalled.size() - fetching;
    statistics_.fetching_now = fetching;
  }
}

void Session::take_fetched(uint32_t number, const std::string& why) {
  if (!fetches_.take_answer(number, why) || !why.empty()) return;
  fetched_ = true;
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

void Session::close() {
  stalls_.end();
  end_demotions();
  end_moving();
  end_sharing();
  if (auto closed = image_->close(); !closed) log_notice(closed.error().message);
}

}  // namespace pcow
