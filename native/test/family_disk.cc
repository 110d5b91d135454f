#include "family_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>

#include "check.h"

using namespace pcow;

namespace crash {
namespace {

const DiskPage kZeros{};

std::string directory_of_path(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

DiskState some_state_of(const DiskSimulator& disk, std::mt19937_64* random) {
  std::vector<DiskState> states;
  disk.sample(4, random, [&](DiskState state) { states.push_back(std::move(state)); });
  return std::move(states[(*random)() % states.size()]);
}

}  // namespace

void FamilyDisk::adopt(const std::string& path) {
  files_[path] = std::make_shared<DiskSimulator>(DiskState::of_file(root_ + "/" + path));
  directories_[directory_of_path(path)].durable[path] = files_[path];
}

void FamilyDisk::change(FileNames* names, const Changes& changes) {
  for (const Change& one : changes) {
    if (one.file) {
      (*names)[one.path] = one.file;
    } else {
      names->erase(one.path);
    }
  }
}

void FamilyDisk::change_names(Changes changes) {
  change(&files_, changes);
  directories_[directory_of_path(changes.back().path)].since.push_back(std::move(changes));
}

void FamilyDisk::sync_names(const std::string& directory) {
  LayerDirectory& names = directories_[directory];
  for (const Changes& changes : names.since) change(&names.durable, changes);
  names.since.clear();
}

// Data that was not synced before the file got its name has not certainly reached the disk.
std::shared_ptr<DiskSimulator> FamilyDisk::file_of_draft(const std::string& path,
                                                         const std::string& name) {
  const auto synced = drafts_.find(path);
  const DiskState before = synced == drafts_.end() ? DiskState{} : synced->second;
  const DiskState now = DiskState::of_file(root_ + "/" + name);
  auto file = std::make_shared<DiskSimulator>(before);
  if (now.size != before.size)
    file->apply(now.size > before.size ? FileOperation::kResize : FileOperation::kShorten, 0,
                now.size, nullptr);
  for (const auto& [number, page] : now.pages) {
    const auto at = before.pages.find(number);
    if (at == before.pages.end() || *at->second != *page)
      file->apply(FileOperation::kWrite, number * kPageSize, kPageSize, page->data());
  }
  for (const auto& [number, page] : before.pages)
    if (!now.pages.contains(number))
      file->apply(FileOperation::kWrite, number * kPageSize, kPageSize, kZeros.data());
  return file;
}

void FamilyDisk::apply(NameEvent event, const std::string& path, const std::string& second) {
  const auto known = files_.find(path);
  const bool is_known = known != files_.end();
  switch (event) {
    case NameEvent::kLink:
      if (is_known) change_names({{second, known->second}});
      break;
    case NameEvent::kRename: {
      auto file = is_known ? known->second : file_of_draft(path, second);
      drafts_.erase(path);
      Changes changes;
      if (is_known) changes.push_back({path, nullptr});
      changes.push_back({second, std::move(file)});
      change_names(std::move(changes));
      break;
    }
    case NameEvent::kUnlink:
      if (is_known) change_names({{path, nullptr}});
      break;
    case NameEvent::kSync:
      if (std::filesystem::is_directory(root_ + "/" + path)) {
        sync_names(path);
      } else if (!is_known) {
        drafts_[path] = DiskState::of_file(root_ + "/" + path);
      }
      break;  // operations on known files are synced in Process::before
  }
}

void FamilyDisk::restore(const std::string& path) {
  const DiskState state = file(path).cached();
  const int descriptor = open((root_ + "/" + path).c_str(), O_RDWR | O_CLOEXEC);
  CHECK(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(state.size)) == 0);
  for (uint64_t number = 0; number * kPageSize < state.size; number++) {
    DiskPage is{};
    const auto offset = static_cast<off_t>(number * kPageSize);
    CHECK(pread(descriptor, is.data(), kPageSize, offset) >= 0);
    const auto at = state.pages.find(number);
    const DiskPage& wanted = at == state.pages.end() ? kZeros : *at->second;
    if (is != wanted)
      CHECK(pwrite(descriptor, wanted.data(), kPageSize, offset) ==
            static_cast<ssize_t>(kPageSize));
  }
  close(descriptor);
}

void FamilyDisk::sample(size_t budget, std::mt19937_64* random,
                        const std::function<void(State)>& use) const {
  enum { kOnDisk, kCached, kNamesBehind, kNamesAhead, kAny };  // and what is above
  for (size_t tried = 0; tried < budget; tried++) {
    const uint64_t kind = (*random)() % 8;
    State state;
    std::map<const DiskSimulator*, std::shared_ptr<DiskState>> chosen;
    for (const auto& [path, directory] : directories_) {
      FileNames names = directory.durable;
      for (const Changes& changes : directory.since) {
        const bool is_there =
            kind >= kAny ? (*random)() % 2 : kind == kCached || kind == kNamesAhead;
        if (is_there) change(&names, changes);
      }
      for (const auto& [name, disk] : names) {
        auto& left = chosen[disk.get()];
        if (!left)
          left = std::make_shared<DiskState>(
              kind == kOnDisk || kind == kNamesAhead    ? disk->on_disk()
              : kind == kCached || kind == kNamesBehind ? disk->cached()
                                                        : some_state_of(*disk, random));
        state[name] = left;
      }
    }
    use(std::move(state));
  }
}

}  // namespace crash
