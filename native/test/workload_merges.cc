// Situations that a random workload reaches too rarely, most of them in deletions.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <thread>

#include "engine/format/geometry.h"
#include "workload.h"

using namespace pcow;

namespace crash {

void Workload::stop_remove(const std::string& name) {
  World world = world_;
  world.snapshots.erase(name);
  Content after = now_;
  after.snapshots.erase(name);
  const auto stop = [&]() -> Result<void> {
    auto stopped = image_->remove(name, [](uint64_t done, uint64_t) { return done == 0; });
    return !stopped && stopped.error().code == Code::kCancelled
               ? Result<void>()
               : Error(Code::kInvalid, "not stopped");
  };
  if (attempt("stopped remove", after, {world_, world}, stop)) settle(std::move(world));
}

void Workload::two_deletions() {
  const uint64_t sectors = block_size_ / kSector;
  run_->where = profile_.name;
  prepare();
  write(sectors / 2, sectors / 2);
  snapshot();
  write(0, sectors / 2);
  write(kBlocksPerChunk * sectors, sectors);  // so that the merge has two chunks
  snapshot();
  stop_remove("s1");
  write(sectors / 2, sectors / 2);
  sync();
  remove("s0", nullptr);
  finish();
}

void Workload::write_beside_zeros() {
  const uint64_t sectors = block_size_ / kSector;
  run_->where = profile_.name;
  prepare();
  // A discard of what the base holds leaves durable zeros without a block. The image's first block
  // makes the file longer.
  const auto data = std::find_if(now_.active.begin(), now_.active.end(),
                                 [](uint64_t stamp) { return stamp != 0; });
  const auto first = static_cast<uint64_t>(data - now_.active.begin()) / sectors * sectors;
  discard(first, sectors);
  sync();
  write(first, sectors / 2);
  // So few stores may be on the disk or not that all states can be tried.
  sync();
  finish();
}

void Workload::shorter_file() {
  const uint64_t sectors = block_size_ / kSector;
  const uint64_t second_chunk = kBlocksPerChunk * sectors;
  const auto length = [&] { return std::filesystem::file_size(image_path_); };
  run_->where = profile_.name;
  prepare();
  resize(2 * second_chunk);
  write(0, sectors);
  write(second_chunk, sectors);  // at the end of the file
  sync();
  const bool deletes = below(2);
  if (deletes) snapshot();
  discard(second_chunk, sectors);
  if (deletes) remove("s0", nullptr);
  const uint64_t before = length();
  reopen();
  if (length() >= before) run_->fail("the file has not become shorter");
  write(second_chunk, sectors);
  sync();
  finish();
}

void Workload::merge_with_checksums() {
  constexpr uint64_t kBlocks = 8;  // enough for a power cut between the write of one and its entry
  const uint64_t sectors = block_size_ / kSector;
  run_->where = profile_.name;
  prepare();
  resize((kBlocksPerChunk + 2) * sectors);
  write(0, kBlocks * sectors);
  write(kBlocksPerChunk * sectors, sectors);  // so that the merge has two chunks
  snapshot();
  add_checksums();
  const Progress between = [&](uint64_t done, uint64_t) {
    if (done == 0) return true;
    for (uint64_t block = 0; block < kBlocks; block++) write_meanwhile(block * sectors, sectors);
    must_have_checksums(*run_, *image_, false);
    must_have_checksums(*run_, *run_->must(open_image(image_path_, false, nullptr), "open"), false);
    return true;
  };
  remove("s0", between);
  finish();
}

void Workload::merge_on_a_full_disk() {
  constexpr uint64_t kBlocks = 8;
  const uint64_t sectors = block_size_ / kSector;
  const uint64_t second_chunk = kBlocksPerChunk * sectors;
  run_->where = profile_.name;
  prepare();
  resize(second_chunk + 6 * sectors);
  // Two snapshots: if data of the nearer one were lost, the other one's would be read.
  for (int snapshots = 0; snapshots < 2; snapshots++) {
    write(0, kBlocks * sectors);
    write(second_chunk, 6 * sectors);
    snapshot();
  }
  for (uint64_t block = 0; block < kBlocks / 2; block++) write(block * sectors, sectors / 2);
  // The heir takes over one block of the second chunk. The next one, of which it holds a part,
  // finds the disk full.
  write(second_chunk + sectors, sectors / 2);
  sync();
  const Progress between = [&](uint64_t done, uint64_t) {
    if (done == 0 || cuts_.interrupt) return true;
    discard_meanwhile(0, sectors);
    write_meanwhile(sectors, sectors);
    cuts_.refused_writes = 2;  // the reserve serves the first one
    // In the syncs before entries are taken out, discards of what the heir has not taken yet.
    cuts_.interrupt = [&, block = 2]() mutable {
      if (block < 6) discard_meanwhile(second_chunk + block++ * sectors, sectors);
    };
    return true;
  };
  remove("s1", between);
  cuts_.interrupt = nullptr;
  discard(kBlocks / 2 * sectors, sectors);
  sync();
  finish();
}

void Workload::clone_of_a_snapshot() {
  run_->where = profile_.name;
  prepare();
  write(0, 12);
  const std::string clone = directory_ / "clone.pcow";
  Content after = now_;
  after.snapshots["s"] = now_.active;
  const auto look_at_clone = [&](const std::string& state) {
    const std::string base = directory_ / "states/image.pcow";
    std::filesystem::remove(base);
    std::filesystem::create_hard_link(state, base);
    const auto image =
        run_->must(open_image(directory_ / "states/clone.pcow", false, nullptr), "open the clone");
    if (read_content(*run_, *image).active != after.snapshots["s"])
      run_->fail("the clone holds something else");
  };
  std::atomic<bool> made{false};
  std::thread cloning;
  const auto take = [&]() -> Result<void> {
    auto pending = PendingSnapshot::prepare(image_.get(), "s", false);
    if (!pending) return pending.error();
    (*pending)->close_gate();
    PCOW_TRY((*pending)->commit());
    cloning = std::thread([&] {
      CreateOptions options;
      options.has_base = true;
      options.base.path = image_path_;
      options.base.snapshot = "s";
      run_->must(create_image(clone, options), "clone");
      std::filesystem::copy_file(clone, directory_ / "states/clone.pcow");
      made = true;
    });
    // Enough time for it, if it does not wait.
    for (int i = 0; i < 100 && !made; i++) usleep(200);
    if (made) cuts_.also = look_at_clone;
    return (*pending)->finish();
  };
  if (attempt("snapshot", after, {world_, exactly(after)}, take)) settle(exactly(after));
  cloning.join();
  cuts_.also = look_at_clone;
  write(0, 12);
  sync();
  finish();
}

}  // namespace crash
