// One workload of the power-cut simulator: random operations on an image, and what it must hold.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "power_cuts.h"

namespace crash {

// How many of a hundred steps are of each kind.
struct Profile {
  const char* name;
  int write, discard, sync, snapshot, remove, rollback, clone, resize, reopen;
  bool base = false;   // the image stands on a base
  bool kills = false;  // the process is killed now and then
  // A range is made the image's own and mapped, and may be stored to at any time afterwards.
  int touch = 0;
  int promote = 0;  // a chunk is completed from lower layers, where it is or elsewhere
  // Writes and discards happen in the middle of syncs, snapshots and merges.
  bool interrupted = false;
  uint64_t blocks = 9;
  int shrink = 0, rebase = 0, commit = 0, compact = 0;
  int checksums = 0;  // frozen layers get checksums, or lose them
  int rename = 0;     // snapshots are renamed
};

class Workload {
 public:
  Workload(Run* run, const Profile& profile, uint32_t block_size)
      : run_(run),
        profile_(profile),
        block_size_(block_size),
        directory_(run->place),
        cuts_(run, &directory_, run->fault.err || profile.blocks > 100 ? 1 : 10, false) {}

  // A deletion with blocks that its heir releases and that would be used again at once if they were
  // not held back: the file is full, and they are its first free blocks.
  void reuse_during_a_merge();
  // A deletion is stopped after its heir has taken a block over, the heir writes into that block,
  // and an older snapshot is deleted, which holds something there that the newer one does not.
  void two_deletions();
  // The deleted layer has checksums, and its heir writes into blocks as soon as it has taken them
  // over.
  void merge_with_checksums();
  // Another process makes an image on a snapshot while it is being taken. That image is durable: a
  // power cut must not remove its base.
  void clone_of_a_snapshot();
  // A merge finds the disk full, spends the reserve, and then takes out of the deleted layer what
  // its heir holds.
  void merge_on_a_full_disk();
  // Blocks that are zeros durably, and have no block in the file yet, are written in part.
  void write_beside_zeros();
  void shorter_file();
  // A snapshot is remote, is filled while other things happen, and becomes an ordinary one.
  void lazy(int steps);
  void go(int steps);

 private:
  void finish();

  uint64_t below(uint64_t limit) { return run_->random() % limit; }

  void prepare();
  pcow::Result<void> open_again();

  // It gets a snapshot "ground". The states of the image find this base, too.
  void make_base(const std::string& name, const pcow::CreateOptions& options);

  // Runs one operation, which changes the content from `now_` to `after`. Meanwhile the disk may
  // hold any of `meanwhile`. Returns true if it was done; then the caller says what the disk may
  // hold from now on.
  template <typename Do>
  bool attempt(const char* name, const Content& after, std::vector<World> meanwhile,
               const Do& what) {
    cuts_.begin(name);
    cuts_.worlds = std::move(meanwhile);
    later_.clear();
    auto outcome = what();
    if (cuts_.killed()) {
      revive(after);
      return false;
    }
    bool sync_failed = false;
    if (cuts_.recover(&sync_failed) && !outcome) {
      survive(after, outcome.error(), sync_failed);
      return false;
    }
    run_->must(std::move(outcome), name);
    now_ = after;
    for (const auto& [sector, stamps] : later_) now_.active[sector] = stamps.back();
    return true;
  }

  // The process was killed in the middle. Nothing may be lost; the interrupted operation may be
  // visible or not.
  void revive(const Content& after);

  // The state after an operation that was not finished: nothing is lost, and the operation may be
  // visible or not.
  Content content_between(const Content& after);

  // An operation failed because of the machine. It must have returned an error; the image is sound,
  // and usable. A failed sync is not forgotten until the image is opened again.
  void survive(const Content& after, const pcow::Error& error, bool sync_failed);

  // What was written during the operation may be on the disk or not.
  void settle(World world);

  // While `what` runs, other threads write, discard and store through the mapping whenever they
  // could.
  template <typename Do>
  auto interrupted(const Do& what) {
    if (profile_.interrupted && !run_->fault.err) {
      cuts_.interrupt = [&] {
        if (below(2)) meanwhile();
      };
    }
    auto outcome = what();
    cuts_.interrupt = nullptr;
    return outcome;
  }

  void meanwhile();
  void discard_meanwhile();
  void discard_meanwhile(uint64_t first, uint64_t count);
  void write_meanwhile();
  void write_meanwhile(uint64_t first, uint64_t count);
  void come_later(uint64_t first, uint64_t count, uint64_t stamp);
  std::string some_snapshot();
  void step();
  void pick(uint64_t* first, uint64_t* count);

  // A guest under the monitor causes a page fault.
  void touch();

  // … and stores, without the engine noticing.
  struct Stored {
    uint64_t first, count, stamp;
  };
  Stored store_sectors(bool flushed);
  void store();
  void store_meanwhile();
  void promote();
  // Blocks are copied, other steps come, and what allows it is moved.
  void move(uint64_t offset);
  void write();
  void write(uint64_t first, uint64_t count);
  void discard();
  void discard(uint64_t first, uint64_t count);
  void sync();
  void fill();
  void give_back();
  uint16_t remote_mask(uint64_t block) const;
  void snapshot();

  // As the monitor takes one: writes and stores continue until the cut, and again after it.
  void snapshot_in_steps(const std::string& name);
  void remove();
  void remove(const pcow::Progress& between) { remove(some_snapshot(), between); }
  void remove(const std::string& name, const pcow::Progress& between);
  // Until its heir has taken over the first chunk.
  void stop_remove(const std::string& name);
  void rename();
  void rollback();
  void clone();
  void resize();
  void resize(uint64_t sectors);
  void shrink();

  // To one of the bases, or to none. The content does not change.
  void rebase();
  void commit();
  void write_zeros();
  void compact();
  void add_checksums();
  void remove_checksums();
  void reopen();

  Run* run_;
  const Profile& profile_;
  const uint32_t block_size_;
  TemporaryDirectory directory_;
  PowerCuts cuts_;
  std::string image_path_;
  std::unique_ptr<pcow::Image> image_;
  std::unique_ptr<pcow::ChunkMove> move_;  // of this image
  Content now_;                            // as every process sees it
  World world_;                            // what of it a power cut may leave
  std::vector<pcow::Extent> mapped_;       // what a guest may store to
  std::map<uint64_t, std::vector<uint64_t>>
      later_;  // sectors that were written during an operation, and that it does not cover
  int names_ = 0;
  std::map<std::string, Stamps> bases_;  // what their snapshots "ground" hold
};

}  // namespace crash
