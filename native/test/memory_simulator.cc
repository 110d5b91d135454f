#include "memory_simulator.h"

#include <algorithm>
#include <cstring>

#include "check.h"

using namespace pcow;

namespace {

constexpr size_t kWord = 8;
constexpr size_t kWordsPerLine = 64 / kWord;

uint64_t word_of(const DiskPage* page, size_t number) {
  uint64_t word = 0;
  if (page) memcpy(&word, page->data() + number * kWord, kWord);
  return word;
}

}  // namespace

uint64_t MemorySimulator::Content::word(size_t number) const {
  const auto at = cached.find(number);
  return at == cached.end() ? word_of(durable.get(), number) : at->second.back();
}

void MemorySimulator::Content::settle(size_t number, size_t values) {
  const auto at = cached.find(number);
  if (values == 0 || at == cached.end()) return;
  auto page = durable ? std::make_shared<DiskPage>(*durable) : std::make_shared<DiskPage>();
  memcpy(page->data() + number * kWord, &at->second[values - 1], kWord);
  durable = std::move(page);
  at->second.erase(at->second.begin(), at->second.begin() + static_cast<ptrdiff_t>(values));
  if (at->second.empty()) cached.erase(at);
}

void MemorySimulator::Content::settle_all() {
  if (cached.empty()) return;
  auto page = durable ? std::make_shared<DiskPage>(*durable) : std::make_shared<DiskPage>();
  for (const auto& [number, values] : cached)
    memcpy(page->data() + number * kWord, &values.back(), kWord);
  durable = std::move(page);
  cached.clear();
  on_way.clear();
}

MemorySimulator::MemorySimulator(DiskState state) : sizes_{state.size} {
  for (auto& [number, page] : state.pages) pages_[number] = {Content{std::move(page), {}, {}}};
}

void MemorySimulator::store(uint64_t offset, uint64_t length, const void* data, bool on_way) {
  const auto* from = static_cast<const uint8_t*>(data);  // null: zeros
  for (uint64_t done = 0; done < length;) {
    const uint64_t at = offset + done;
    const size_t within = at % kWord;
    const uint64_t count = std::min<uint64_t>(kWord - within, length - done);
    Places& places = pages_[at / kPageSize];
    if (places.empty()) places.emplace_back();
    Content& content = places.back();
    const size_t number = at % kPageSize / kWord;
    uint64_t word = content.word(number);
    if (from) {
      memcpy(reinterpret_cast<char*>(&word) + within, from + done, count);
    } else {
      memset(reinterpret_cast<char*>(&word) + within, 0, count);
    }
    auto& values = content.cached[number];
    values.push_back(word);
    if (on_way) {
      content.on_way[number] = values.size();
      with_some_on_way_.insert(at / kPageSize);
    }
    done += count;
  }
}

void MemorySimulator::store_durably(uint64_t offset, uint64_t length, const void* data) {
  commit(offset / kPageSize, pages_for(offset + length));
  store(offset, length, data, false);
  for (uint64_t at = offset / kWord; at < (offset + length + kWord - 1) / kWord; at++) {
    Content& content = pages_[at * kWord / kPageSize].back();
    const size_t number = at % (kPageSize / kWord);
    content.on_way.erase(number);
    content.settle(number, content.cached[number].size());
  }
}

// Whole pages are taken away from the file. The rest of other pages is overwritten with zeros by
// the kernel, which flushes them at some later time.
void MemorySimulator::punch(uint64_t offset, uint64_t length) {
  const uint64_t end = std::min(offset + length, sizes_.back());
  while (offset < end) {
    const uint64_t count = std::min(kPageSize - offset % kPageSize, end - offset);
    const auto at = pages_.find(offset / kPageSize);
    if (at != pages_.end()) {
      const Content& now = at->second.back();
      if (count < kPageSize) {
        store(offset, count, nullptr, false);
      } else if (now.durable || !now.cached.empty()) {
        at->second.emplace_back();
      }
    }
    offset += count;
  }
}

void MemorySimulator::commit(uint64_t first, uint64_t end) {
  for (auto at = pages_.lower_bound(first); at != pages_.end() && at->first < end; ++at)
    at->second.erase(at->second.begin(), at->second.end() - 1);
  commit_size(end);
}

// Only as much as is needed: a file that has grown twice may have its first new length.
void MemorySimulator::commit_size(uint64_t end) {
  sizes_.erase(sizes_.begin(), std::find_if(sizes_.begin(), sizes_.end() - 1,
                                            [&](uint64_t size) { return pages_for(size) >= end; }));
}

void MemorySimulator::apply(FileOperation operation, uint64_t offset, uint64_t length,
                            const void* data) {
  uint64_t size = sizes_.back();
  note_space(operation, offset, length);
  switch (operation) {
    case FileOperation::kWrite:
    case FileOperation::kStore:
      CHECK(offset + length <= size);  // nothing is mapped beyond the end
      commit(offset / kPageSize, pages_for(offset + length));
      store(offset, length, data, operation == FileOperation::kWrite);
      break;
    case FileOperation::kFlush:
      for (uint64_t line = offset / 64; line < (offset + length + 63) / 64; line++) {
        const auto at = pages_.find(line * 64 / kPageSize);
        if (at == pages_.end()) continue;
        Content& content = at->second.back();
        const size_t first = line % (kPageSize / 64) * kWordsPerLine;
        for (auto word = content.cached.lower_bound(first);
             word != content.cached.end() && word->first < first + kWordsPerLine; ++word)
          content.on_way[word->first] = word->second.size();
        with_some_on_way_.insert(at->first);
      }
      break;
    case FileOperation::kFence:
      for (const uint64_t page : with_some_on_way_) {
        Content& content = pages_[page].back();
        for (const auto& [number, values] : content.on_way) content.settle(number, values);
        content.on_way.clear();
      }
      with_some_on_way_.clear();
      break;
    case FileOperation::kWriteFault: commit(offset / kPageSize, pages_for(offset + length)); break;
    case FileOperation::kPunch: punch(offset, length); break;
    case FileOperation::kAllocate: size = std::max(size, offset + length); break;
    case FileOperation::kResize:
      CHECK(length >= size);
      size = length;
      break;
    case FileOperation::kShorten:
      CHECK(length <= size);
      punch(length, size - length);
      size = length;
      break;
    case FileOperation::kRead:
    case FileOperation::kMap:
    case FileOperation::kSync:
    case FileOperation::kWriteBack: break;
  }
  if (size != sizes_.back()) sizes_.push_back(size);
}

void MemorySimulator::sync(uint64_t offset, uint64_t length) {
  const bool whole = length == kWholeFile;
  const uint64_t end = whole ? kWholeFile : pages_for(offset + length);
  if (whole) sizes_.erase(sizes_.begin(), sizes_.end() - 1);
  commit(offset / kPageSize, end);
  for (auto at = pages_.lower_bound(offset / kPageSize); at != pages_.end() && at->first < end;
       ++at)
    at->second.back().settle_all();
}

// `things`: the number of things of which one version is chosen.
DiskState MemorySimulator::choose(Kind kind, size_t odd, std::mt19937_64* random,
                                  size_t* things) const {
  size_t thing = 0;
  const auto version = [&](size_t count) -> size_t {
    const bool is_odd = thing++ == odd;
    switch (kind) {
      case Kind::kOldest: return 0;
      case Kind::kNewest: return count - 1;
      case Kind::kOneAhead: return is_odd ? count - 1 : 0;
      case Kind::kOneBehind: return is_odd ? 0 : count - 1;
      case Kind::kRandom: break;
    }
    return (*random)() % count;
  };
  DiskState state;
  state.size = sizes_.size() > 1 ? sizes_[version(sizes_.size())] : sizes_[0];
  for (const auto& [number, places] : pages_) {
    const Content& content = places.size() > 1 ? places[version(places.size())] : places[0];
    auto page = content.durable;
    if (!content.cached.empty()) {
      auto mixed = page ? std::make_shared<DiskPage>(*page) : std::make_shared<DiskPage>();
      size_t line = ~size_t{0};
      size_t chosen = 0;
      for (const auto& [word, values] : content.cached) {
        if (word / kWordsPerLine != line) chosen = version(3);
        line = word / kWordsPerLine;
        // 0: nothing of the line has reached the medium; 2: all of it; 1: anything, word by word.
        const size_t many = chosen == 0   ? 0
                            : chosen == 2 ? values.size()
                                          : static_cast<size_t>((*random)() % (values.size() + 1));
        if (many) memcpy(mixed->data() + word * kWord, &values[many - 1], kWord);
      }
      page = std::move(mixed);
    }
    if (page) state.pages[number] = std::move(page);
  }
  std::erase_if(state.pages, [&](const auto& page) { return page.first >= pages_for(state.size); });
  if (things) *things = thing;
  return state;
}

DiskState MemorySimulator::cached() const { return choose(Kind::kNewest, 0, nullptr, nullptr); }

void MemorySimulator::sample(size_t budget, std::mt19937_64* random,
                             const std::function<void(DiskState)>& use) const {
  size_t things = 0;
  DiskState oldest = choose(Kind::kOldest, 0, random, &things);
  if (things == 0) return use(std::move(oldest));
  for (size_t tried = 0; tried < budget; tried++) {
    const auto kind = static_cast<Kind>((*random)() % 5);
    use(kind == Kind::kOldest ? oldest : choose(kind, (*random)() % things, random, nullptr));
  }
}
