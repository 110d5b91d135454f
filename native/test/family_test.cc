// Power cuts of several images: see family.h.
//
//   family_test [EFFORT]     EFFORT: multiplies the work of the short run
#include "family.h"

#include "check.h"

int main(int argc, char** argv) {
  const int effort = argc > 1 ? atoi(argv[1]) : 1;
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kSteps = 20;
#else
  constexpr int kSteps = 40;
#endif
  Run run;
  run.random.seed(test_seed());
  for (int round = 0; round < effort; round++) crash::run_families(&run, kSteps);
  printf("%llu states, %llu killed processes\n", static_cast<unsigned long long>(run.states),
         static_cast<unsigned long long>(run.kills));
  return 0;
}
