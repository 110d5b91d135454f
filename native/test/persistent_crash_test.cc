// Power cuts of an image in persistent memory (memory_simulator.h), by the workloads of crash_workload.h.
//
//   persistent_crash_test [EFFORT [WORKLOAD]]     as crash_test
#include "check.h"
#include "crash_workload.h"

int main(int argc, char** argv) {
  const int effort = argc > 1 ? atoi(argv[1]) : 1;
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 3;
#else
  constexpr int kSteps = 20;
#endif
  Run run;
  run.random.seed(test_seed());
  run.persistent = true;
  for (int round = 0; round < effort; round++) {
    if (argc > 2) {
      run_workload(&run, argv[2], kSteps);
    } else {
      run_workloads(&run, kSteps);
    }
  }
  printf("%llu states, %llu killed processes\n", static_cast<unsigned long long>(run.states),
         static_cast<unsigned long long>(run.kills));
  return 0;
}
