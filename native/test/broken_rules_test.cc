// An engine that is broken on purpose. Each ordering rule of docs/format.md (engine/rules.h) is
// broken in turn, and the power-cut simulator must find a state in which this breaks a promise.
//
//   broken_rules_test [ROUNDS [RULE [WORKLOAD]]]
//     ROUNDS    how often a workload is tried before a breach counts as not found
//     RULE      the only rule to break, or "all"
//     WORKLOAD  another workload than the one that shows the breach soonest
#include <sys/wait.h>

#include <cstring>
#include <set>

#include "check.h"
#include "crash_workload.h"
#include "engine/rules.h"

using pcow::Rule;

namespace {

struct Breach {
  Rule rule;
  const char* name;
  const char* workload;  // that shows the breach
  bool persistent;       // in persistent memory
};

#define BREACH(rule, workload) \
  { Rule::rule, #rule, workload, false }
#define BREACH_IN_MEMORY(rule, workload) \
  { Rule::rule, #rule, workload, true }
const Breach kBreaches[] = {
    BREACH(kSyncAtOpening, "killed processes"),
    BREACH(kDropUndurable, "expansion"),
    BREACH(kHideUnsealed, "meanwhile"),
    BREACH(kPunchAtOpening, "mapping, killed"),
    BREACH(kMarkBeforeWrite, "expansion"),
    BREACH(kDataBeforeEntry, "killed processes"),
    BREACH(kDurableAfterSync, "expansion"),
    BREACH(kZerosBeforeEntry, "write beside zeros"),
    BREACH(kMovedBeforeEntry, "mapping"),
    BREACH(kNoSyncSinceCopy, "mapping"),
    BREACH(kTableSpaceBeforeStore, "expansion"),
    BREACH(kDataSpaceBeforeMapping, "mapping, killed"),
    BREACH(kFileReachesBeforeUse, "expansion"),
    BREACH(kFilledBeforeEntry, "lazy"),
    BREACH(kRemoteBeforeRelease, "lazy"),
    BREACH(kFreeingBeforePunch, "several children"),
    BREACH(kFreeingBeforeReuse, "discard and reuse"),
    BREACH(kHoleBeforeReuse, "mapping"),
    BREACH(kHoldReleasesDuringMerges, "reuse during a merge"),
    BREACH(kChecksumsGoneBeforeHeir, "checksums of a merge"),
    BREACH(kHeirBeforeHandingOver, "merge on a full disk"),
    BREACH(kMergeNearestFirst, "two deletions"),
    BREACH(kDataBeforeDurable, "expansion"),
    BREACH(kNotedBitsOnly, "meanwhile"),
    BREACH(kDurableBeforeReturn, "copy-on-write"),
    BREACH(kDirectoryBeforeSuperblock, "snapshots"),
    BREACH(kChecksumsBeforeSuperblock, "checksums"),
    BREACH(kLongerTableBeforeSuperblock, "growing"),
    BREACH(kHeirBeforeSuperblock, "deletion and merge"),
    BREACH(kTakenInBeforeSuperblock, "rebases"),
    BREACH(kSourceBeforeSuperblock, "lazy"),
    BREACH(kSourceBeforeRemote, "lazy"),
    BREACH(kFilledBeforeSourceGone, "lazy"),
    BREACH(kSuperblockBeforeReturn, "several children"),
    BREACH(kOtherSlot, "snapshots"),
    BREACH(kDurableBeforeSeal, "meanwhile"),
    BREACH(kSealedBeforeNamed, "clone of a snapshot"),
    BREACH(kSealBeforeReturn, "snapshots"),
    BREACH(kFileBeforeName, "family"),
    BREACH(kNameBeforeReturn, "family"),
    BREACH(kSyncBeforeClean, "expansion"),
    BREACH(kHolesBeforeClean, "mapping"),
    BREACH(kGoneBeforeShorter, "shorter file"),
    BREACH_IN_MEMORY(kCopyFencedBeforeEntry, "expansion"),
    BREACH_IN_MEMORY(kCopyFencedBeforeEntry, "snapshots"),
    BREACH_IN_MEMORY(kEntryFlushed, "mapping"),
    BREACH_IN_MEMORY(kEntryFencedBeforeReturn, "mapping"),
    BREACH_IN_MEMORY(kLengthBeforeUse, "mapping"),
    BREACH_IN_MEMORY(kHolesBeforeReturn, "discard and reuse"),
    BREACH_IN_MEMORY(kMappedBeforeReturn, "mapping"),
    BREACH_IN_MEMORY(kDataBeforeEntry, "copy-on-write"),
    BREACH_IN_MEMORY(kFreeingBeforeReuse, "discard and reuse"),
    BREACH_IN_MEMORY(kHoleBeforeReuse, "mapping"),
    BREACH_IN_MEMORY(kDataSpaceBeforeMapping, "mapping"),
    BREACH_IN_MEMORY(kFileReachesBeforeUse, "expansion"),
    BREACH_IN_MEMORY(kDurableBeforeSeal, "mapping"),
};

// In a process of its own, because a failure ends the process. The parent removes its files.
bool is_found(const Breach& breach, const char* workload, uint64_t seed, int rounds) {
  const TemporaryDirectory place("/dev/shm");
  fflush(nullptr);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(freopen("/dev/null", "w", stderr));
    pcow::broken_rule = breach.rule;
    Run run;
    run.random.seed(seed);
    run.place = place.path();
    run.persistent = breach.persistent;
    for (int round = 0; round < rounds; round++) {
      pcow::goes_without_reserve = round % 2 == 0 && breach.rule != Rule::kHeirBeforeHandingOver;
      run_workload(&run, workload, 20);
    }
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  // The engine may also stop because of what its broken rule has caused.
  return WIFSIGNALED(status) || WEXITSTATUS(status) == 1;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 400;  // most breaches are found after a few
  const uint64_t seed = test_seed();
  std::set<Rule> seen;
  for (const Breach& breach : kBreaches) seen.insert(breach.rule);
  CHECK(seen.size() == static_cast<size_t>(Rule::kCount) - 1);  // all but kNone
  int tried = 0;
  int missed = 0;
  for (const Breach& breach : kBreaches) {
    if (argc > 2 && strcmp(argv[2], breach.name) != 0 && strcmp(argv[2], "all") != 0) continue;
    tried++;
    if (!is_found(breach, argc > 3 ? argv[3] : breach.workload, seed, rounds)) {
      missed++;
      printf("a breach of this rule is not found: %s%s\n", breach.name,
             breach.persistent ? ", in persistent memory" : "");
    }
  }
  printf("%d broken rules, %d not found\n", tried, missed);
  return missed ? 1 : 0;
}
