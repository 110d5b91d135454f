// Several images whose power is cut at the same time: a base, clones of it in its directory and in
// another one, and clones of clones. Each is opened by a process of its own, and while one process
// works on its image the others continue with theirs. Processes die. Deletions are interrupted
// anywhere, and wait while other operations are done. Images are made, renamed, replaced and
// deleted. Readers that were opened long ago continue, piece by piece, during all of this. After a
// power cut every file is in a state of its own, and so is every name (family_disk.h). Then every
// file must be sound, hold everything that was synced and every snapshot whose call returned, and
// read through its base as before. Files that were made must be found, also by the images that
// stand on them; files that were deleted must not.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "crash_content.h"
#include "family_disk.h"

namespace crash {

class Family;
struct Member;

// A process, which observes the engine's operations on the images that it writes.
class Process : public pcow::FileObserver {
 public:
  Process(Family* family, Member* member) : family_(family), member_(member) {}

  int before(pcow::FileOperation operation, const std::string& path, uint64_t offset,
             uint64_t length, const void* data) override;

  // The process dies before so many more operations that change something.
  void kill_after(uint64_t operations) { left_ = operations; }
  bool killed() const { return killed_; }
  // One operation fails after so many others of its kind: with ENOSPC if it needs space, or any
  // operation but a sync with EIO.
  void fail_after(uint64_t operations, int err) {
    until_failure_ = operations;
    err_ = err;
  }
  // Nothing fails while `what` runs.
  template <typename Do>
  void without_failures(const Do& what) {
    const int err = std::exchange(err_, 0);
    what();
    err_ = err;
  }
  // From now on nothing fails. Returns whether anything has failed.
  bool recover() {
    err_ = 0;
    return std::exchange(failed_, false);
  }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};
  int fault_of(pcow::FileOperation operation);

  Family* family_;
  Member* member_;
  uint64_t left_ = kNever;
  uint64_t until_failure_ = 0;
  int err_ = 0;
  bool killed_ = false;
  bool failed_ = false;
};

// A reader in a process that has existed for long: it reads a snapshot in pieces, and its map in
// batches.
struct LongReader {
  std::unique_ptr<pcow::Image> image;
  std::shared_ptr<pcow::View> view;
  std::string snapshot;
  uint64_t next = 0;         // bytes
  uint64_t next_mapped = 0;  // bytes
};

struct Member {
  std::string path;    // relative to the family's directory
  std::string second;  // another name that it may have while it is being renamed
  std::unique_ptr<Process> process;
  std::unique_ptr<pcow::Image> image;
  LongReader reader;
  Content now;                // as every process sees it
  World world;                // what of it a power cut may leave
  std::vector<World> worlds;  // … in the middle of an operation
  // Sectors that were written in the middle of an operation.
  std::map<uint64_t, std::vector<uint64_t>> later;
  Member* base = nullptr;
  std::string base_snapshot;
  Member* next_base = nullptr;  // while it changes its base: it may stand on either
  std::string next_snapshot;
  // It is being made or deleted, so the file may exist or not. No process opens it.
  bool is_passing = false;
  bool is_replaced = false;  // another file is getting its name. No process opens it, either
  // An operation that this process is doing now.
  bool busy = false;
  bool changing = false;  // of the content of the active layer, in one step
  std::string removing;   // a snapshot
  // Its base was deleted: it reads as before, or not at all.
  bool orphaned = false;
};

class Family : public NameObserver {
 public:
  Family(Run* run, uint32_t block_size, uint64_t blocks);
  ~Family() override;
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;
  void go(int steps);
  void saw(NameEvent event, const std::string& path, const std::string& second) override;

 private:
  friend class Process;
  uint64_t below(uint64_t limit) { return run_->random() % limit; }
  std::string place(const std::string& path) const { return directory_ / path; }
  Member* some_member(const std::function<bool(const Member&)>& fits);
  bool is_stood_on(const Member& member, const std::string& snapshot) const;
  bool is_stood_on(const Member& member) const;
  std::string some_snapshot(const Member& member);

  // family.cc: processes and power cuts.
  void open(Member* member);
  // Its process ends properly.
  void close(Member* member);
  void revive(Member* member, const Content& after);
  void survive(Member* member, const Content& after);
  Content content_between(Member* member, const Content& after);
  void settle(Member* member, World world);
  // Other processes act, in the middle of what this process does.
  void others_go_on(const Member* but);
  void cut(size_t budget);
  void check(const FamilyDisk::State& state);
  void check_names(const FamilyDisk::State& state);
  void check_member(const Member& member, const std::string& path);
  void work_on(const Member& member, const std::string& path, Content content);
  void check_orphan(const Member& member, const std::string& path);

  // Runs an operation on a member, which changes its content from `now` to `after`. Returns true if
  // it was done.
  template <typename Do>
  bool attempt(Member* member, const std::string& name, const Content& after,
               std::vector<World> meanwhile, const Do& what) {
    const std::string outer = std::exchange(run_->operation, member->path + ": " + name);
    member->busy = true;
    member->worlds = std::move(meanwhile);
    member->later.clear();
    if (below(14) == 0) member->process->kill_after(below(12));
    if (below(8) == 0) member->process->fail_after(below(12), below(2) ? ENOSPC : EIO);
    auto outcome = what();
    member->changing = false;
    const bool failed = member->process->recover();
    member->process->kill_after(~uint64_t{0});
    bool done = false;
    if (member->process->killed()) {
      revive(member, after);
    } else if (!outcome && (failed || outcome.error().code == pcow::Code::kCancelled)) {
      survive(member, after);
    } else {
      run_->must(std::move(outcome), "it");
      member->now = after;
      for (const auto& [sector, stamps] : member->later) member->now.active[sector] = stamps.back();
      done = true;
    }
    member->busy = false;
    run_->operation = outer;
    return done;
  }

  // family_steps.cc: the operations.
  void step(Member* member);
  void pick(const Member& member, uint64_t* first, uint64_t* count);
  void write(Member* member);
  void write_meanwhile(Member* member);
  void discard(Member* member);
  void touch(Member* member);
  void sync(Member* member);
  void snapshot(Member* member);
  void rename_snapshot(Member* member);
  void remove(Member* member);
  void remove(Member* member, const std::string& name);
  void orphan(Member* member, const std::string& snapshot);
  void rollback(Member* member);
  void clone(Member* member);
  void rebase(Member* member);
  void commit(Member* member);
  void compact(Member* member);
  void reopen(Member* member);
  void compare(Member* member);
  void read_on();
  void read_orphans();
  pcow::Progress between(Member* member);

  // family_names.cc: making, renaming and removing files.
  void change_files();
  void change_name(Member* member, const std::string& what,
                   const std::function<pcow::Result<void>()>& change);
  void add_clone(Member* base, const std::string& snapshot);
  void rename(Member* member);
  void tell_new_name(Member* child, const Member& base);
  void remove_file(Member* member);
  void replace(Member* member);
  std::string filled_draft(const Member& member, Content* content, int* lock);

  Run* run_;
  const uint32_t block_size_;
  const uint64_t blocks_;
  TemporaryDirectory directory_;
  FamilyDisk disk_;
  const Member* naming_ = nullptr;  // the member whose name is changing
  std::vector<std::unique_ptr<Member>> members_;
  int names_ = 0;
  int depth_ = 0;  // number of nested operations
  // The interrupting operations are, as often as possible, those of the base's process.
  bool base_goes_on_ = false;
  bool checking_ = false;  // a state
};

// A family with blocks of each size, and one with two chunks.
void run_families(Run* run, int steps);

}  // namespace crash
