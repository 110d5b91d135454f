#include "disk_simulator.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "check.h"
#include "engine/format/superblock.h"
#include "engine/image/page_cache.h"

using namespace pcow;

namespace {

constexpr size_t kDiskSector = 512;

// The superblocks, which need not be written as whole sectors: there are two, and each has a
// checksum.
bool is_superblock(uint64_t page) { return page < 2; }

}  // namespace

void DiskState::forget_boot() {
  for (const uint64_t slot : {0, 1}) {
    const auto at = pages.find(slot);
    if (at == pages.end()) continue;
    auto superblock = Superblock::decode(at->second->data(), "a simulated disk");
    if (!superblock || superblock->boot != boot_id()) continue;
    superblock->boot[0] ^= 0xff;
    at->second = std::make_shared<DiskPage>(superblock->encode());
  }
}

void DiskState::write_to(const std::string& path) const {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  CHECK(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(size)) == 0);
  for (const auto& [number, page] : pages) {
    const uint64_t offset = number * kPageSize;
    if (offset >= size) break;
    const auto length = static_cast<ssize_t>(std::min<uint64_t>(kPageSize, size - offset));
    CHECK(pwrite(descriptor, page->data(), static_cast<size_t>(length),
                 static_cast<off_t>(offset)) == length);
  }
  close(descriptor);
}

void DiskState::go_on_as(const std::string& path) {
  write_to(path);
  const auto file = MUST(File::open(path, true, nullptr));
  for (const uint64_t slot : {0, 1}) {
    const auto at = pages.find(slot);
    if (at == pages.end()) continue;
    auto superblock = Superblock::decode(at->second->data(), "a simulated disk");
    if (!superblock || superblock->boot != boot_id()) continue;
    superblock->cache = cache_token_of(*file);
    const auto page = superblock->encode();
    MUST(file->write(slot * kPageSize, page.data(), page.size()));
  }
  mark_inode(*file);
}

DiskState DiskState::of_file(const std::string& path) {
  DiskState state;
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(descriptor >= 0);
  state.size = static_cast<uint64_t>(lseek(descriptor, 0, SEEK_END));
  static const DiskPage zeros{};
  for (off_t at = 0; (at = lseek(descriptor, at, SEEK_DATA)) >= 0;
       at = (at / kPageSize + 1) * kPageSize) {
    auto page = std::make_shared<DiskPage>();
    CHECK(pread(descriptor, page->data(), kPageSize, at / kPageSize * kPageSize) >= 0);
    if (*page != zeros) state.pages[static_cast<uint64_t>(at) / kPageSize] = std::move(page);
  }
  close(descriptor);
  return state;
}

DiskSimulator::DiskSimulator(DiskState state) : sizes_{state.size} {
  for (auto& [number, page] : state.pages) pages_[number] = {std::move(page)};
}

bool Medium::has_space(uint64_t offset, uint64_t length) const {
  for (uint64_t page = offset / kPageSize; page < pages_for(offset + length); page++)
    if (!allocated_.contains(page)) return false;
  return true;
}

void Medium::note_space(FileOperation operation, uint64_t offset, uint64_t length) {
  if (operation == FileOperation::kWrite || operation == FileOperation::kAllocate) {
    for (uint64_t page = offset / kPageSize; page < pages_for(offset + length); page++)
      allocated_.insert(page);
  } else if (operation == FileOperation::kPunch) {
    const uint64_t first = pages_for(offset);
    const uint64_t end = (offset + length) / kPageSize;
    if (first < end) allocated_.erase(allocated_.lower_bound(first), allocated_.lower_bound(end));
  } else if (operation == FileOperation::kShorten) {
    allocated_.erase(allocated_.lower_bound(pages_for(length)), allocated_.end());
  }
}

// `data` null: zeros.
void DiskSimulator::change(uint64_t offset, uint64_t length, const uint8_t* data) {
  for (uint64_t done = 0; done < length;) {
    const uint64_t within = (offset + done) % kPageSize;
    const uint64_t count = std::min(kPageSize - within, length - done);
    Versions& versions = pages_[(offset + done) / kPageSize];
    if (versions.empty()) versions.push_back(nullptr);
    if (data || versions.back()) {
      auto page = versions.back() ? std::make_shared<DiskPage>(*versions.back())
                                  : std::make_shared<DiskPage>();
      if (data) {
        memcpy(page->data() + within, data + done, count);
      } else {
        memset(page->data() + within, 0, count);
      }
      versions.push_back(std::move(page));
    }
    done += count;
  }
}

void DiskSimulator::apply(FileOperation operation, uint64_t offset, uint64_t length,
                          const void* data) {
  uint64_t size = sizes_.back();
  note_space(operation, offset, length);
  switch (operation) {
    case FileOperation::kWrite:
    case FileOperation::kStore:
      size = std::max(size, offset + length);
      change(offset, length, static_cast<const uint8_t*>(data));
      break;
    case FileOperation::kPunch:
      change(offset, std::min(length, size - std::min(size, offset)), nullptr);
      break;
    case FileOperation::kAllocate: size = std::max(size, offset + length); break;
    case FileOperation::kResize:
      CHECK(length >= size);
      size = length;
      break;
    case FileOperation::kShorten:
      CHECK(length <= size && length % kPageSize == 0);
      for (auto at = pages_.lower_bound(length / kPageSize); at != pages_.end(); ++at)
        if (at->second.back()) at->second.push_back(nullptr);
      size = length;
      break;
    case FileOperation::kRead:
    case FileOperation::kMap:
    case FileOperation::kSync:
    case FileOperation::kWriteBack:
    case FileOperation::kFlush:
    case FileOperation::kFence:
    case FileOperation::kWriteFault: break;
  }
  if (size != sizes_.back()) sizes_.push_back(size);
}

void DiskSimulator::sync(uint64_t offset, uint64_t length) {
  const bool whole = length == kWholeFile;
  const uint64_t end = whole ? kWholeFile : pages_for(offset + length);
  const auto reaches = [&](uint64_t size) { return !whole && pages_for(size) >= end; };
  sizes_.erase(sizes_.begin(), std::find_if(sizes_.begin(), sizes_.end() - 1, reaches));
  for (auto at = pages_.lower_bound(offset / kPageSize); at != pages_.end() && at->first < end;
       ++at)
    at->second = {at->second.back()};
}

// Calls `version` with the number of versions of each thing that has several. With `tear`, pages
// are torn.
DiskState DiskSimulator::choose(const std::function<size_t(size_t)>& version,
                                std::mt19937_64* tear) const {
  DiskState state;
  state.size = sizes_.size() > 1 ? sizes_[version(sizes_.size())] : sizes_[0];
  for (const auto& [number, versions] : pages_) {
    if (versions.size() == 1) {
      if (versions[0]) state.pages[number] = versions[0];
      continue;
    }
    auto page = versions[version(versions.size())];
    if (tear) {
      const auto& other = versions[(*tear)() % versions.size()];
      auto torn = page ? std::make_shared<DiskPage>(*page) : std::make_shared<DiskPage>();
      for (size_t at = 0; at < kPageSize; at += kDiskSector) {
        if ((*tear)() % 2) continue;
        const size_t length = is_superblock(number) ? (*tear)() % kDiskSector : kDiskSector;
        if (other) {
          memcpy(torn->data() + at, other->data() + at, length);
        } else {
          memset(torn->data() + at, 0, length);
        }
      }
      page = std::move(torn);
    }
    if (page) state.pages[number] = page;
  }
  std::erase_if(state.pages, [&](const auto& page) { return page.first >= pages_for(state.size); });
  return state;
}

DiskState DiskSimulator::cached() const {
  return choose([](size_t count) { return count - 1; }, nullptr);
}

DiskState DiskSimulator::on_disk() const {
  return choose([](size_t) { return size_t{0}; }, nullptr);
}

void DiskSimulator::sample(size_t budget, std::mt19937_64* random,
                           const std::function<void(DiskState)>& use) const {
  std::vector<size_t> counts;
  if (sizes_.size() > 1) counts.push_back(sizes_.size());
  for (const auto& [number, versions] : pages_)
    if (versions.size() > 1) counts.push_back(versions.size());
  size_t all = 1;
  for (const size_t count : counts) all = std::min(all * count, budget + 1);

  if (all <= budget) {
    for (size_t state = 0; state < all; state++) {
      size_t left = state;
      use(choose(
          [&](size_t count) {
            const size_t version = left % count;
            left /= count;
            return version;
          },
          nullptr));
    }
  } else {
    use(choose([](size_t) { return size_t{0}; }, nullptr));
    use(cached());
  }
  // One thing is ahead of all others, or behind; then random choices. If there are few things, only
  // tearing is left to try.
  for (size_t tried = all <= budget ? all : 2; tried < budget && !counts.empty(); tried++) {
    const size_t odd = (*random)() % counts.size();
    const uint64_t kind = all <= budget ? 3 : (*random)() % 4;
    size_t thing = 0;
    use(choose(
        [&](size_t count) {
          const bool is_odd = thing++ == odd;
          if (kind == 0) return is_odd ? count - 1 : 0;
          if (kind == 1) return is_odd ? 0 : count - 1;
          return static_cast<size_t>((*random)() % count);
        },
        kind == 3 ? random : nullptr));
  }
}
