// Write faults of a monitored process: what is decided for each, and that the decision uses the
// state that is seen under the lock.
#include <functional>
#include <thread>

#include "check.h"
#include "engine/disk/file.h"
#include "engine/image/fault_plan.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 65536;
constexpr uint64_t kSub = 4096;

// A block of 16 sub-blocks; the third is written to.
void decides_by_what_is_there() {
  const Geometry geometry(16);
  constexpr uint32_t kNumber = 2;
  constexpr uint16_t kAll = 0xffff;
  const auto plan = [&](const Entry& entry, uint16_t below, bool in_snapshot = false,
                        const FaultHint& hint = {}) {
    return plan_fault(geometry, {entry, below, in_snapshot, kNumber}, hint);
  };
  const Entry empty;
  const Entry own_elsewhere{7, 0x0001, 0x0001};
  const Entry zeros_elsewhere{0, 0x0001, 0x0001};
  // What is already own is mapped, whatever else there is.
  CHECK(plan({7, 0x0004, 0}, kAll) == FaultPlan::kMap);
  CHECK(plan({7, kAll, kAll}, 0, true, {kLargestRun, true}) == FaultPlan::kMap);
  // No layer holds anything.
  CHECK(plan(empty, 0) == FaultPlan::kExpand);
  CHECK(plan(empty, 0, false, {kLargestRun, true}) == FaultPlan::kExpand);
  // Own in part, and lower layers hold nothing of the rest: it becomes zeros. The same for zeros
  // without a block.
  CHECK(plan(own_elsewhere, 0) == FaultPlan::kComplete);
  CHECK(plan(own_elsewhere, 0x0001) == FaultPlan::kComplete);
  CHECK(plan({0, kAll, kAll}, kAll) == FaultPlan::kComplete);
  // Scattered writes copy a single sub-block, if a lower layer holds it.
  CHECK(plan(empty, kAll) == FaultPlan::kCopySubBlock);
  CHECK(plan(empty, kAll, true) == FaultPlan::kCopySubBlock);
  CHECK(plan(own_elsewhere, kAll) == FaultPlan::kCopySubBlock);
  CHECK(plan(empty, static_cast<uint16_t>(kAll & ~0x0004)) == FaultPlan::kComplete);
  CHECK(plan(zeros_elsewhere, kAll) == FaultPlan::kComplete);
  // Completed: at the second write to what a snapshot of the image holds, for a sequential writer,
  // if the caller asks for it, and if half of the block is own.
  CHECK(plan(own_elsewhere, kAll, true) == FaultPlan::kComplete);
  CHECK(plan(empty, kAll, false, {kBlock, false}) == FaultPlan::kComplete);
  CHECK(plan(empty, kAll, false, {0, true}) == FaultPlan::kComplete);
  CHECK(plan({7, 0x7f00, 0}, kAll) == FaultPlan::kCopySubBlock);
  CHECK(plan({7, 0xff00, 0}, kAll) == FaultPlan::kComplete);
}

// Something that happens once, before the next file operation of that kind in the image's file.
class Before : public FileObserver {
 public:
  int before(FileOperation operation, const std::string&, uint64_t, uint64_t,
             const void*) override {
    if (operation == kind && happen) std::exchange(happen, nullptr)();
    return 0;
  }
  FileOperation kind = FileOperation::kAllocate;
  std::function<void()> happen;
};

std::string bytes_at(const Image& image, uint64_t offset) {
  std::string found(kSub, '?');
  CHECK(MUST(image.read(nullptr, offset, found.data(), found.size())) == found.size());
  return found;
}

// Over a base, so that what has not been written is copied sub-block by sub-block.
void keeps_what_is_written_meanwhile() {
  TemporaryDirectory directory("/dev/shm");
  const std::string base = directory / "base.pcow";
  const std::string path = directory / "image.pcow";
  CreateOptions create;
  create.size = 16 * kBlock;
  MUST(create_image(base, create));
  OpenOptions options;
  options.write = true;
  const std::string old(kBlock, 'o');
  {
    auto image = MUST(Image::open(base, options));
    MUST(image->write(0, old.data(), old.size()));
    MUST(image->snapshot("s"));
    MUST(image->close());
  }
  create.has_base = true;
  create.base = {base, "s", 0};
  MUST(create_image(path, create));
  Before observer;
  options.observer = &observer;
  auto image = MUST(Image::open(path, options));

  // The table's page gets its disk space after the fault's first look, and before the fault has the
  // lock.
  const std::string written(kSub, 'n');
  bool came = false;
  observer.happen = [&] {
    std::thread([&] { MUST(image->write(kSub, written.data(), kSub)); }).join();
    came = true;
  };
  FaultWork work;
  const Extent extent = MUST(image->make_writable(kSub, {}, &work));
  CHECK(came);
  CHECK(extent.offset <= kSub && extent.offset + extent.length >= 2 * kSub);
  CHECK(bytes_at(*image, kSub) == written);
  CHECK(bytes_at(*image, 0) == old.substr(0, kSub) &&
        bytes_at(*image, 2 * kSub) == old.substr(0, kSub));
  CHECK(!work.copied && !work.expanded);
  MUST(image->close());
}

void finds_each_run_of_a_mask() {
  const Geometry geometry(16);
  for (uint32_t mask = 0; mask <= 0xffff; mask++) {
    uint32_t seen = 0;
    uint32_t last = 0;
    MUST(geometry.each_run(
        static_cast<uint16_t>(mask), [&](uint32_t within, uint32_t length) -> Result<void> {
          CHECK(length > 0 && (seen == 0 || within > last) &&
                within + length <= geometry.block_size());
          for (uint32_t at = within; at < within + length; at += geometry.sub_block_size())
            seen |= 1u << (at / geometry.sub_block_size());
          last = within + length;
          return {};
        }));
    CHECK(seen == mask);
  }
}

}  // namespace

int main() {
  decides_by_what_is_there();
  keeps_what_is_written_meanwhile();
  finds_each_run_of_a_mask();
  return 0;
}
