// Faults of the machine, at every file operation of a workload in turn: EIO, ENOSPC (for once, or until the step of the workload
// is over), a table that cannot be mapped; and reads and writes that go piece by piece, with signals in between. An error must come
// out, with the right errno; nothing is lost; the image goes on, also after a power cut (crash_workload.h).
//
//   faults_test                         the faults that were once not survived
//   faults_test EFFORT [WORKLOAD]       how many of the operations are tried, in parts of a hundred; 100: all
#include <cerrno>

#include "check.h"
#include "crash_workload.h"

namespace {

struct Kind {
  int err;
  bool lasts;
};
constexpr Kind kKinds[] = {{EIO, false}, {ENOSPC, false}, {ENOSPC, true}, {ENOMEM, false}};
constexpr uint32_t kBlockSizes[] = {4096, 16384};
constexpr int kSteps = 12;

Run run_with_error(const Kind& kind, uint64_t operation, uint64_t seed, const std::string& name, uint32_t block_size) {
  Run run;
  run.random.seed(seed);
  run.fault = {kind.err, operation, kind.lasts, false};
  run.fault_name = "error " + std::to_string(kind.err) + " at operation " + std::to_string(operation);
  run_with_fault(&run, name, block_size, kSteps);
  return run;
}

// The release of a dropped layer could not read its table, or a hole could not be punched before it began, and the image was
// closed clean.
void known_faults() {
  for (uint64_t operation = 45; operation < 55; operation++)
    CHECK(run_with_error({EIO, false}, operation, 4, "deletion and merge", 4096).fault.struck);
}

}  // namespace

int main(int argc, char** argv) {
  known_faults();
  if (argc < 2) return 0;
  const uint64_t stride = 100 / static_cast<uint64_t>(atoi(argv[1]));
  const uint64_t seed = test_seed();
  uint64_t faults = 0;
  uint64_t states = 0;
  for (const std::string& name : fault_workloads()) {
    if (argc > 2 && name != argv[2]) continue;
    for (const uint32_t block_size : kBlockSizes) {
      for (const Kind& kind : kKinds) {
        for (uint64_t operation = seed % stride;; operation += stride) {
          const Run run = run_with_error(kind, operation, seed, name, block_size);
          states += run.states;
          if (!run.fault.struck) break;
          faults++;
        }
      }
      Run run;
      run.random.seed(seed);
      run.interrupts = true;
      run_with_fault(&run, name, block_size, kSteps);
    }
  }
  CHECK(argc > 2 || faults > 50);
  printf("%llu faults, %llu states\n", static_cast<unsigned long long>(faults),
         static_cast<unsigned long long>(states));
  return 0;
}
