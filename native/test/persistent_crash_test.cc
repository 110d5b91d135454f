// Power cuts of an image in persistent memory (memory_simulator.h), by the workloads of
// crash_workload.h.
//
//   persistent_crash_test [EFFORT [WORKLOAD]]     as crash_test
#include <utility>

#include "crash_workload.h"

int main(int argc, char** argv) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 3;
#else
  constexpr int kSteps = 20;
#endif
  Run run;
  run.persistent = true;
  return run_crash_test(argc, argv, std::move(run), kSteps);
}
