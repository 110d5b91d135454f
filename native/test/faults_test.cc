// Faults of the machine, at every file operation of a workload in turn: with every errno that a
// disk or a filesystem may return (disk_errnos.h), once, or until the step of the workload is over;
// and reads and writes that are done piece by piece, with signals in between. The operation must
// fail with the right errno, nothing may be lost, and the image must remain usable, also after a
// power cut (crash_workload.h).
//
//   faults_test                         faults that were once not survived, and random ones: with
//   each errno, in each workload
//   faults_test EFFORT [WORKLOAD]       EFFORT: the percentage of the operations to try
#include <cerrno>

#include "check.h"
#include "crash_workload.h"
#include "disk_errnos.h"

namespace {

constexpr uint32_t kBlockSizes[] = {4096, 16384};
constexpr int kSteps = 12;
constexpr size_t kErrnos = std::size(kDiskErrnos);

Run run_with_error(const Fault& fault, uint64_t seed, const std::string& name, uint32_t block_size,
                   int steps) {
  Run run;
  run.random.seed(seed);
  run.fault = fault;
  run.fault_name = "error " + std::to_string(fault.err) + (fault.lasts ? " from" : " at") +
                   " operation " + std::to_string(fault.operation) +
                   (fault.of_space ? " that needs space" : "");
  run_with_fault(&run, name, block_size, steps);
  return run;
}

// Once, the release of a dropped layer could not read its table, or a hole could not be punched,
// and the image was closed as clean.
void known_faults() {
  for (uint64_t operation = 45; operation < 65; operation++)
    CHECK(run_with_error({EIO, operation}, 4, "deletion and merge", 4096, kSteps).fault.struck);
}

// Each errno in turn, at a random operation of a workload: every workload, block size and way of
// failing has its turn.
void faults_at_random(uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<std::string> names = fault_workloads();
  for (size_t i = 0; i < kErrnos; i++) {
    Fault fault = {kDiskErrnos[i], random() % 50, i % 2 == 0};
    const std::string& name = names[(i + seed) % names.size()];
    const uint64_t workload = random();
    for (;;) {
      const Fault left = run_with_error(fault, workload, name, kBlockSizes[i / 2 % 2], 5).fault;
      if (left.struck) break;
      // The workload has fewer operations: at one of those.
      CHECK(left.operation < fault.operation);
      fault.operation = random() % (fault.operation - left.operation);
    }
  }
}

struct Ways {
  uint64_t faults = 0;
  uint64_t states = 0;
};

// Every `stride`-th operation of a workload fails, with one errno after another, or with those of a
// full disk.
void faults_everywhere(const std::string& name, uint32_t block_size, uint64_t stride, uint64_t seed,
                       Ways* ways) {
  for (const bool of_space : {false, true}) {
    for (const bool lasts : {false, true}) {
      for (uint64_t operation = seed % stride;; operation += stride) {
        const int err = of_space ? operation % 2 ? EDQUOT : ENOSPC
                                 : kDiskErrnos[(operation / stride + seed) % kErrnos];
        const Run run =
            run_with_error({err, operation, lasts, of_space}, seed, name, block_size, kSteps);
        ways->states += run.states;
        if (!run.fault.struck) break;
        ways->faults++;
      }
    }
  }
  Run run;
  run.random.seed(seed);
  run.interrupts = true;
  run_with_fault(&run, name, block_size, kSteps);
}

}  // namespace

int main(int argc, char** argv) {
  known_faults();
  const uint64_t seed = test_seed();
  if (argc < 2) {
    faults_at_random(seed);
    return 0;
  }
  const uint64_t stride = 100 / static_cast<uint64_t>(atoi(argv[1]));
  Ways ways;
  for (const std::string& name : fault_workloads())
    for (const uint32_t block_size : kBlockSizes)
      if (argc == 2 || name == argv[2]) faults_everywhere(name, block_size, stride, seed, &ways);
  CHECK(argc > 2 || ways.faults > 50);
  printf("%llu faults, %llu states\n", static_cast<unsigned long long>(ways.faults),
         static_cast<unsigned long long>(ways.states));
  return 0;
}
