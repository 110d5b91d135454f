// Power cuts: see crash_workload.h.
//
//   crash_test [EFFORT [WORKLOAD]]     EFFORT: multiplies the work of the short run; WORKLOAD: the
//   name of a single one
#include "crash_workload.h"

int main(int argc, char** argv) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 4;
#else
  constexpr int kSteps = 20;
#endif
  return run_crash_test(argc, argv, {}, kSteps);
}
