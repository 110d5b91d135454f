// Faults of the machine, at every file operation of a workload in turn: EIO, ENOSPC (for once, or until the step of the workload
// is over), a table that cannot be mapped; and reads and writes that go piece by piece, with signals in between. An error must come
// out, with the right errno; nothing is lost; the image goes on, also after a power cut (crash_workload.h).
//
//   faults_test [EFFORT]     a number: how many of the operations are tried, in parts of a hundred; 100: all
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

}  // namespace

int main(int argc, char** argv) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  const uint64_t stride = 100;
#else
  const uint64_t stride = 100 / static_cast<uint64_t>(argc > 1 ? atoi(argv[1]) : 3);
#endif
  (void)argc, (void)argv;
  const uint64_t seed = test_seed();
  uint64_t faults = 0;
  uint64_t states = 0;
  for (const std::string& name : fault_workloads()) {
    for (const uint32_t block_size : kBlockSizes) {
      for (const Kind& kind : kKinds) {
        for (uint64_t operation = seed % stride;; operation += stride) {
          Run run;
          run.random.seed(seed);
          run.fault = {kind.err, operation, kind.lasts, false};
          run_with_fault(&run, name, block_size, kSteps);
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
  CHECK(faults > 50);
  printf("%llu faults, %llu states\n", static_cast<unsigned long long>(faults),
         static_cast<unsigned long long>(states));
  return 0;
}
