// The observer of the engine's operations on one file, which cuts the power: see crash_workload.h.
#pragma once

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "crash_content.h"
#include "disk_simulator.h"
#include "memory_simulator.h"

namespace crash {

// Observes the engine's operations on one file.
class PowerCuts : public pcow::FileObserver {
 public:
  PowerCuts(Run* run, const TemporaryDirectory* directory, size_t budget, bool nested)
      : run_(run), directory_(directory), budget_(budget), nested_(nested) {}

  std::vector<World> worlds;  // what a state may hold at present
  // Called at a moment when another thread could act: after a sync has noted what it covers.
  std::function<void()> interrupt;
  // Also called with each state, in a file at this path.
  std::function<void(const std::string& path)> also;
  bool checksums = false;  // some layers have checksums
  // A layer gets all its checksums at once, and takes in nothing later.
  bool whole_checksums = false;
  // Remote sub-blocks may be in the active layer, so the image cannot be used yet.
  bool draft = false;

  void watch(const std::string& path) {
    path_ = path;
    carry_to(run_->persistent, DiskState::of_file(path));
  }
  // Moves the file, which no process has open, to a medium of the other kind.
  void carry_over() { carry_to(!memory_, disk_->cached()); }
  bool in_memory() const { return memory_; }
  void begin(const std::string& operation) {
    if (!nested_) run_->operation = operation;
  }
  // The image's base, if it is written as well: every state of the image comes with one of the
  // base's disk.
  void watch_base(const std::string& path) {
    base_path_ = path;
    // Its medium is not always of the same kind as the image's.
    base_in_memory_ = run_->persistent && run_->random() % 2;
    base_disk_ = medium(base_in_memory_, DiskState::of_file(path));
  }
  // What snapshots of that base hold: those that it must have, and one that it may have already.
  std::map<std::string, Stamps> base_snapshots;
  std::map<std::string, Stamps> base_coming;
  // The filesystem has no space for a longer file: blocks come from free ones inside it.
  bool full = false;
  // The number of writes that find the disk full.
  int refused_writes = 0;
  // The process dies before so many more operations.
  void kill_after(uint64_t operations) { left_ = operations; }
  bool killed() const { return killed_; }
  // Copies the file, which no process has open, with reflinks.
  void share() { disk_->share(); }
  // A process stores into its mapping of the file, without an operation of the engine. `flushed`:
  // it also flushes, in persistent memory that it has mapped with MAP_SYNC.
  void store_through_mapping(uint64_t offset, uint64_t length, const uint8_t* data, bool flushed) {
    if (!disk_->has_space(offset, length))
      run_->fail("a store through a mapping may find the disk full");
    if (flushed) {
      memory_->store_durably(offset, length, data);
    } else if (memory_) {
      memory_->store_plainly(offset, length, data);
    } else {
      disk_->apply(pcow::FileOperation::kWrite, offset, length, data);
    }
    if (run_->random() % 8 == 0) cut(2);
  }
  // Called between two steps. In persistent memory everything that has returned is durable without
  // a sync.
  void look() {
    if (memory_ && run_->random() % 2 == 0) cut(2);
  }
  // The process is dead; its file, as the page cache has it, continues as another file.
  void go_on_as(const std::string& path) {
    disk_->cached().go_on_as(path);
    path_ = path;
    killed_ = shortened_ = false;
    left_ = kNever;
  }

  int before(pcow::FileOperation operation, const std::string& path, uint64_t offset,
             uint64_t length, const void* data) override;

  bool is_persistent(const std::string& path) override {
    return path == path_ ? in_memory() : path == base_path_ && base_in_memory_;
  }

  size_t step(pcow::FileOperation, size_t length) override {
    if (!run_->interrupts || run_->random() % 3) return length;
    return run_->random() % 2 ? 0 : 1 + run_->random() % length;
  }

  // From now on nothing fails. Returns whether a fault has struck since the last call; `sync`:
  // whether a sync failed.
  bool recover(bool* sync) {
    *sync = sync_failed_;
    sync_failed_ = false;
    return std::exchange(faulty_, false);
  }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};

  static std::unique_ptr<Medium> medium(bool memory, DiskState state) {
    if (memory) return std::make_unique<MemorySimulator>(std::move(state));
    return std::make_unique<DiskSimulator>(std::move(state));
  }
  void carry_to(bool memory, DiskState state) {
    disk_ = medium(memory, std::move(state));
    memory_ = memory ? static_cast<MemorySimulator*>(disk_.get()) : nullptr;
  }

  void must_be_closing(pcow::FileOperation operation, uint64_t offset);
  void before_in_base(pcow::FileOperation operation, uint64_t offset, uint64_t length,
                      const void* data);
  void check_base();
  // The errno of the run's fault if it strikes this operation; otherwise 0.
  int fault_of(pcow::FileOperation operation);
  void do_in_part(uint64_t offset, uint64_t length, const void* data);

  void cut(size_t budget) {
    disk_->sample(budget, &run_->random, [&](DiskState state) { check(std::move(state)); });
  }
  void check(DiskState state);
  void go_on(const std::string& path, Content content);
  void cut_recovery(const DiskState& state);

  Run* run_;
  const TemporaryDirectory* directory_;
  const size_t budget_;
  const bool nested_;
  std::string path_;
  std::unique_ptr<Medium> disk_;
  MemorySimulator* memory_ = nullptr;  // the same, if it is of that kind
  std::string base_path_;
  std::unique_ptr<Medium> base_disk_;
  bool base_in_memory_ = false;
  uint64_t left_ = kNever;
  bool killed_ = false;
  bool shortened_ = false;  // … since the last sync
  bool faulty_ = false;
  bool sync_failed_ = false;
};

}  // namespace crash
