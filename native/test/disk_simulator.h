// A disk under a page cache, as far as one file is concerned: what a power cut could leave of the
// file.
//
// The kernel writes every page back as a whole, as it was at any moment since the last sync, in any
// order, or not at all. The same holds for the length of the file. A power cut may tear a page
// between two 512-byte sectors, and a superblock anywhere.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/disk/file.h"
#include "engine/format/geometry.h"

using DiskPage = std::array<uint8_t, pcow::kPageSize>;

inline uint64_t pages_for(uint64_t bytes) {
  return (bytes + pcow::kPageSize - 1) / pcow::kPageSize;
}

// The content of the file; missing pages are zeros.
struct DiskState {
  uint64_t size = 0;
  std::map<uint64_t, std::shared_ptr<const DiskPage>> pages;

  // As after a new boot of the host: superblocks of this boot get another boot id.
  void forget_boot();
  void write_to(const std::string& path) const;
  // The same, but the file is the one that a process of this boot has written, with its page cache.
  void go_on_as(const std::string& path);
  static DiskState of_file(const std::string& path);
};

// The medium of a file.
class Medium {
 public:
  virtual ~Medium() = default;

  // The operation reaches the page cache, or its equivalent.
  virtual void apply(pcow::FileOperation operation, uint64_t offset, uint64_t length,
                     const void* data) = 0;
  // The pages of the range, and the length of the file up to the end of the range, reach the
  // medium; kWholeFile: everything that was done.
  virtual void sync(uint64_t offset, uint64_t length) = 0;
  // The content that every process sees.
  virtual DiskState cached() const = 0;
  // States that a power cut could leave now.
  virtual void sample(size_t budget, std::mt19937_64* random,
                      const std::function<void(DiskState)>& use) const = 0;

  // The file is copied with reflinks: from now on everything in it shares its space, and a store
  // there needs new space.
  void share() { allocated_.clear(); }
  // Whether a store there cannot find the disk full: it was allocated or written, and has been
  // neither punched nor shared since.
  bool has_space(uint64_t offset, uint64_t length) const;

 protected:
  void note_space(pcow::FileOperation operation, uint64_t offset, uint64_t length);

 private:
  std::set<uint64_t> allocated_;  // pages
};

class DiskSimulator : public Medium {
 public:
  // Everything that it holds is shared with a copy of the file.
  explicit DiskSimulator(DiskState state);

  void apply(pcow::FileOperation operation, uint64_t offset, uint64_t length,
             const void* data) override;
  void sync(uint64_t offset, uint64_t length) override;
  DiskState cached() const override;
  // What has certainly reached the disk, and nothing else.
  DiskState on_disk() const;
  // All states if there are at most `budget`; otherwise the two extremes, states in which one page
  // is ahead of the others or behind, and random ones.
  void sample(size_t budget, std::mt19937_64* random,
              const std::function<void(DiskState)>& use) const override;

 private:
  // The first is on the disk; null: zeros.
  using Versions = std::vector<std::shared_ptr<const DiskPage>>;
  DiskState choose(const std::function<size_t(size_t)>& version, std::mt19937_64* tear) const;
  void change(uint64_t offset, uint64_t length, const uint8_t* data);

  std::map<uint64_t, Versions> pages_;
  std::vector<uint64_t> sizes_;
};
