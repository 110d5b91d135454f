// Power cuts: see crash_workload.h.
//
//   crash_test [EFFORT [WORKLOAD]]     EFFORT: how many times the work of the short run; WORKLOAD: the name of the only one
#include "check.h"
#include "crash_workload.h"

int main(int argc, char** argv) {
  const int effort = argc > 1 ? atoi(argv[1]) : 1;
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 4;
#else
  constexpr int kSteps = 20;
#endif
  Run run;
  run.random.seed(test_seed());
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
