// Persistent memory that is mapped, as far as one file is concerned: what a power cut could leave
// of the file.
//
// A store is in the processor's cache. It reaches the medium at any time before the first fence
// that follows the flush of its line, in any order, torn at 8 bytes. The position of a page of the
// file, and the length of the file, are the filesystem's metadata: those of a page are durable
// after a store into it through MAP_SYNC, and all of them after a sync.
#pragma once

#include "disk_simulator.h"

class MemorySimulator : public Medium {
 public:
  explicit MemorySimulator(DiskState state);

  // A write is a copy on its way to the medium; a store stays in the cache. Both go through
  // MAP_SYNC.
  void apply(pcow::FileOperation operation, uint64_t offset, uint64_t length,
             const void* data) override;
  void sync(uint64_t offset, uint64_t length) override;
  DiskState cached() const override;
  // The two extremes; states in which one line is ahead of the others or behind; and random ones,
  // with lines torn between words.
  void sample(size_t budget, std::mt19937_64* random,
              const std::function<void(DiskState)>& use) const override;

  // Stores of another process: through a mapping without MAP_SYNC, or through one with it, flushed
  // and fenced.
  void store_plainly(uint64_t offset, uint64_t length, const void* data) {
    store(offset, length, data, false);
  }
  void store_durably(uint64_t offset, uint64_t length, const void* data);

 private:
  // The content of a page since it was allocated.
  struct Content {
    std::shared_ptr<const DiskPage> durable;  // null: zeros
    std::map<size_t, std::vector<uint64_t>>
        // By the word's number: its values since then, of which the last counts.
        cached;
    // Of that word: so many of these values are durable after a fence.
    std::map<size_t, size_t> on_way;

    uint64_t word(size_t number) const;
    void settle(size_t number, size_t values);  // makes so many of its values durable
    void settle_all();
  };
  // Several if the page was taken away or allocated again, and that may not be durable; the last
  // one counts.
  using Places = std::vector<Content>;
  enum class Kind { kOldest, kNewest, kOneAhead, kOneBehind, kRandom };

  void store(uint64_t offset, uint64_t length, const void* data, bool on_way);
  void punch(uint64_t offset, uint64_t length);
  void commit(uint64_t first, uint64_t end);  // pages
  void commit_size(uint64_t end);             // pages
  DiskState choose(Kind kind, size_t odd, std::mt19937_64* random, size_t* things) const;

  std::map<uint64_t, Places> pages_;
  std::set<uint64_t> with_some_on_way_;  // pages
  std::vector<uint64_t> sizes_;
};
