// Deletions at moments that a random workload hits too seldom.
#include "../engine/geometry.h"
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
    return !stopped && stopped.error().code == Code::kCancelled ? Result<void>() : Error(Code::kInvalid, "not stopped");
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

void Workload::merge_with_checksums() {
  constexpr uint64_t kBlocks = 8;  // enough for a cut between the write of one and its entry
  const uint64_t sectors = block_size_ / kSector;
  run_->where = profile_.name;
  prepare();
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

}  // namespace crash
