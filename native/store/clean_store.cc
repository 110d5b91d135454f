#include "store/clean_store.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "attach/clock.h"
#include "engine/disk/bus_guard.h"

namespace pcow {
namespace {

using protocol::Descriptor;
using segment::kContent;
using segment::kSlices;
using segment::kSliceSize;

// If everything is in use by somebody, how long it is not looked at again.
constexpr uint64_t kFullNs = 1'000'000'000;

// Everything that decides what the layer reads as: a link for each file of its chain.
Result<std::string> key_of(const Image& image, const View& view, const std::string& root) {
  auto chain = image.chain(&view);
  if (!chain) return chain.error();
  std::string key;
  std::string last;
  for (const LayerRef& link : *chain) {
    if (link.path == last) continue;
    last = link.path;
    OpenOptions options;
    options.base_root = root;
    auto file = Image::open(link.path, options);
    if (!file) return file.error();
    auto layers = (*file)->layers();
    if (!layers) return layers.error();
    const auto layer = std::find_if(layers->begin(), layers->end(),
                                    [&](const LayerInfo& one) { return one.id == link.layer; });
    if (layer == layers->end())
      return Error(Code::kNotFound, link.path + " has changed: try again");
    key += (*file)->file_identity() + " " + std::to_string(link.layer) + " " +
           std::to_string(layer->identity) + "\n";
  }
  return key;
}

}  // namespace

Result<std::unique_ptr<CleanStore>> CleanStore::start(uint64_t budget, Report report) {
  Descriptor ends(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!ends) return system_error(errno, "cannot watch the memory of a clean store");
  std::unique_ptr<CleanStore> store(new CleanStore(budget, std::move(report), std::move(ends)));
  store->figures_.budget = budget;
  const SignalsHeld held;
  if (const int err = pthread_create(&store->thread_, nullptr, run, store.get())) {
    store->ended_ = true;
    return system_error(err, "cannot start the thread of the clean store");
  }
  return store;
}

CleanStore::~CleanStore() {
  {
    const std::lock_guard guard(lock_);
    if (ended_) return;
    ended_ = true;
  }
  changed_.notify_one();
  pthread_join(thread_, nullptr);
}

void* CleanStore::run(void* store) {
  pthread_setname_np(pthread_self(), "pcow-store");
  static_cast<CleanStore*>(store)->serve();
  return nullptr;
}

void CleanStore::open(uint64_t client, Layer layer) {
  const std::lock_guard guard(lock_);
  clients_.try_emplace(client);
  openings_.push_back({client, std::move(layer)});
  changed_.notify_one();
}

void CleanStore::want(uint64_t client, uint32_t slice, uint32_t count) {
  const std::lock_guard guard(lock_);
  const auto found = clients_.find(client);
  if (found == clients_.end() || !found->second.layer || found->second.wants.size() >= kMostWants)
    return;
  const auto left = static_cast<uint32_t>(kSlices - slice % kSlices);
  found->second.wants.push_back({slice, std::min(count, left)});
  changed_.notify_one();
}

void CleanStore::take_back(uint64_t client, uint32_t slice) {
  const std::lock_guard guard(lock_);
  if (const auto found = clients_.find(client); found != clients_.end())
    found->second.given.erase(slice / kSlices);
}

void CleanStore::forget(uint64_t client) {
  const std::lock_guard guard(lock_);
  const auto found = clients_.find(client);
  if (found == clients_.end()) return;
  if (found->second.layer) released_.push_back(std::move(found->second.layer));
  clients_.erase(found);
  changed_.notify_one();
}

CleanStore::Figures CleanStore::figures() const {
  const std::lock_guard guard(lock_);
  Figures now = figures_;
  now.clients =
      static_cast<uint64_t>(std::count_if(clients_.begin(), clients_.end(), [](const auto& item) {
        return item.second.layer != nullptr;
      }));
  return now;
}

// One slice at a time, of one client after the other.
void CleanStore::serve() {
  std::unique_lock guard(lock_);
  while (!ended_) {
    if (!released_.empty()) {
      const auto layer = std::move(released_.back());
      released_.pop_back();
      guard.unlock();
      let_go(layer);
      guard.lock();
      continue;
    }
    if (!openings_.empty()) {
      const Opening opening = std::move(openings_.front());
      openings_.pop_front();
      guard.unlock();
      open_now(opening);
      guard.lock();
      continue;
    }
    const auto waits = [](const auto& item) { return !item.second.wants.empty(); };
    auto next = std::find_if(clients_.upper_bound(last_served_), clients_.end(), waits);
    if (next == clients_.end()) next = std::find_if(clients_.begin(), clients_.end(), waits);
    if (next == clients_.end()) {
      changed_.wait(guard);
      continue;
    }
    last_served_ = next->first;
    const auto layer = next->second.layer;
    const Want want = next->second.wants.front();
    next->second.wants.pop_front();
    guard.unlock();
    serve_want(last_served_, layer, want);
    guard.lock();
  }
}

void CleanStore::open_now(const Opening& opening) {
  auto layer = find(opening.layer);
  Answer answer;
  answer.kind = Answer::Kind::kOpened;
  answer.client = opening.client;
  answer.ok = layer.ok();
  if (layer) {
    answer.size = (*layer)->size;
    (*layer)->clients++;
  } else {
    answer.error = layer.error();
  }
  {
    const std::lock_guard guard(lock_);
    const auto client = clients_.find(opening.client);
    if (client == clients_.end()) {
      if (layer) released_.push_back(std::move(*layer));
      return;
    }
    if (client->second.layer) released_.push_back(std::move(client->second.layer));
    client->second = {layer ? std::move(*layer) : nullptr, {}, {}};
  }
  report_(std::move(answer));
}

Result<std::shared_ptr<CleanStore::Stored>> CleanStore::find(const Layer& layer) {
  OpenOptions options;
  options.base_root = layer.root;
  auto image = Image::open(layer.path, options);
  if (!image) return image.error();
  auto view = (*image)->view_of_layer(layer.id);
  if (!view) return view.error();
  auto key = key_of(**image, **view, layer.root);
  if (!key) return key.error();
  auto& stored = layers_[*key];
  if (!stored) {
    stored = std::make_shared<Stored>();
    stored->key = *key;
    stored->size = (*image)->view_size(**view);
  }
  if (!stored->image) {
    stored->image = std::move(*image);
    stored->view = std::move(*view);
  }
  return stored;
}

// Without clients, the layer's file is closed. What was filled stays for the next client.
void CleanStore::let_go(const std::shared_ptr<Stored>& layer) {
  if (--layer->clients > 0) return;
  layer->view.reset();
  layer->image.reset();
  if (layer->segments.empty()) layers_.erase(layer->key);
}

// Fills the next slice of it that is missing. When none is left, answers.
void CleanStore::serve_want(uint64_t client, const std::shared_ptr<Stored>& layer, Want want) {
  for (; want.next < want.count; want.next++) {
    const uint64_t slice = uint64_t{want.slice} + want.next;
    if (slice * kSliceSize >= layer->size) break;
    const auto segment = layer->segments.find(slice / kSlices);
    if (segment != layer->segments.end() && segment->second.memory->is_filled(slice % kSlices))
      continue;
    fill(layer.get(), slice, &want);
    want.next++;
    const std::lock_guard guard(lock_);
    const auto found = clients_.find(client);
    if (found != clients_.end() && found->second.layer == layer)
      found->second.wants.push_front(want);
    return;
  }
  Answer answer;
  answer.kind = Answer::Kind::kSlices;
  answer.client = client;
  answer.slice = want.slice;
  const uint64_t number = want.slice / kSlices;
  if (const auto segment = layer->segments.find(number); segment != layer->segments.end()) {
    segment->second.used_at = ++clock_;
    const std::lock_guard guard(lock_);
    const auto found = clients_.find(client);
    if (found == clients_.end() || found->second.layer != layer) return;
    if (uint64_t& given = found->second.given[number]; given != segment->second.number) {
      answer.segment = segment->second.memory->for_reading();
      if (answer.segment) {
        given = segment->second.number;
        figures_.given++;
      }
    }
  }
  report_(std::move(answer));
}

// What cannot be read, because it is remote or damaged, takes no room, and none from others.
void CleanStore::fill(Stored* layer, uint64_t slice, Want* want) {
  const uint64_t offset = slice * kSliceSize;
  const uint64_t length = std::min(kSliceSize, layer->size - offset);
  const auto known = layer->segments.find(slice / kSlices);
  Stored::Segment* segment = known == layer->segments.end() ? nullptr : &known->second;
  const auto refuse = [this] {
    const std::lock_guard guard(lock_);
    figures_.refused++;
  };
  // Not beyond the end of the layer, where nothing is going to be filled.
  const auto enlarge_pages = [&] {
    if (!std::exchange(want->enlarged, true))
      segment->memory->enlarge_pages(
          slice % kSlices,
          std::min<uint64_t>(want->count - want->next, (layer->size - offset) / kSliceSize));
  };
  if (!segment && monotonic_ns() < full_until_ns_) return refuse();
  if (segment) enlarge_pages();
  if (!segment && read_.empty()) read_.resize(kSliceSize);
  char* const to = segment ? segment->memory->at(slice % kSlices) : read_.data();
  const auto count = layer->image->read(layer->view.get(), offset, to, length);
  if (!count || *count != length) return;
  // Beyond the end of the layer an image on it reads zeros.
  memset(to + length, 0, kSliceSize - length);
  if (!segment) {
    segment = make_segment(layer, slice / kSlices);
    if (!segment) return refuse();
    enlarge_pages();
    memcpy(segment->memory->at(slice % kSlices), to, kSliceSize);
  }
  segment->used_at = ++clock_;
  segment->memory->filled(slice % kSlices);
  segment->filled++;
  note();
}

// Null if there is no room for it.
CleanStore::Stored::Segment* CleanStore::make_segment(Stored* layer, uint64_t number) {
  if (make_room()) {
    if (auto made = SharedSegment::make(ends_.number())) {
      in_use_.insert((*made)->watch());
      Stored::Segment& segment = layer->segments[number];
      segment.memory = std::move(*made);
      segment.number = ++clock_;
      return &segment;
    }
  }
  full_until_ns_ = monotonic_ns() + kFullNs;
  return nullptr;
}

// Room for one more segment.
bool CleanStore::make_room() {
  if (has_room()) return true;
  struct Candidate {
    uint64_t used_at;
    std::shared_ptr<Stored> layer;
    uint64_t number;
  };
  std::vector<Candidate> candidates;
  for (const auto& [key, layer] : layers_)
    for (const auto& [number, segment] : layer->segments)
      candidates.push_back({segment.used_at, layer, number});
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.used_at < b.used_at; });
  for (const Candidate& candidate : candidates) {
    if (has_room()) break;
    const auto segment = candidate.layer->segments.find(candidate.number);
    if (segment->second.memory->is_held()) continue;
    candidate.layer->segments.erase(segment);
    if (candidate.layer->segments.empty() && candidate.layer->clients == 0)
      layers_.erase(candidate.layer->key);
  }
  note();
  return has_room();
}

bool CleanStore::has_room() {
  alignas(inotify_event) char events[4096];
  for (ssize_t length; (length = read(ends_.number(), events, sizeof events)) > 0;) {
    for (const char* at = events; at < events + length;) {
      const auto* event = reinterpret_cast<const inotify_event*>(at);
      if (event->mask & IN_IGNORED) in_use_.erase(event->wd);
      at += sizeof *event + event->len;
    }
  }
  return (in_use_.size() + 1) * kContent <= budget_;
}

void CleanStore::note() {
  uint64_t filled = 0;
  for (const auto& [key, layer] : layers_)
    for (const auto& [number, segment] : layer->segments) filled += segment.filled;
  const std::lock_guard guard(lock_);
  figures_.bytes = filled * kSliceSize;
  figures_.segments = in_use_.size();
}

}  // namespace pcow
