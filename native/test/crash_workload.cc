#include "crash_workload.h"

#include <algorithm>
#include <iterator>

#include "check.h"
#include "family.h"
#include "workload.h"

using namespace crash;

namespace {

constexpr uint32_t kBlockSizes[] = {4096, 16384, 65536};

constexpr Profile kProfiles[] = {
    {"expansion", 70, 0, 25, 0, 0, 0, 0, 0, 5},
    {"copy-on-write", 60, 4, 20, 10, 0, 0, 0, 0, 6, true},
    {"discard and reuse", 45, 30, 20, 2, 0, 0, 0, 0, 3},
    {"snapshots", 45, 10, 10, 25, 5, 0, 0, 0, 5},
    {"deletion and merge", 45, 10, 8, 18, 15, 4, 0, 0, 0},
    {"several children", 40, 8, 8, 14, 14, 14, 0, 0, 2, true},
    {"clones", 50, 8, 10, 8, 8, 0, 12, 0, 4},
    {"growing", 50, 10, 12, 8, 8, 0, 0, 8, 4},
    {"killed processes", 50, 10, 14, 8, 8, 4, 2, 2, 2, true, true},
    {"mapping", 6, 14, 18, 8, 4, 2, 0, 2, 4, true, false, 34, 8, true},
    {"mapping, killed", 6, 8, 14, 8, 6, 4, 0, 2, 2, true, true, 40, 6},
    {"meanwhile", 40, 16, 24, 8, 6, 2, 0, 0, 4, false, false, 0, 0, true},
    {"shrinking", 48, 8, 10, 4, 8, 0, 0, 8, 4, false, false, 0, 0, false, 9, 10},
    {"rebases", 46, 8, 10, 8, 6, 4, 0, 0, 4, true, false, 0, 0, false, 9, 0, 14},
    {"commits", 56, 10, 10, 0, 0, 0, 0, 4, 6, true, false, 0, 0, false, 9, 0, 0, 14},
    {"compactions", 40, 6, 10, 8, 6, 4, 2, 0, 4, true, false, 0, 0, false, 9, 0, 0, 0, 20},
    {"checksums", 50, 4, 8, 14, 0, 2, 2, 0, 4, false, false, 0, 0, false, 9, 0, 0, 0, 0, 16},
    {"checksums and merges",
     40,
     6,
     6,
     12,
     10,
     2,
     2,
     0,
     2,
     true,
     false,
     0,
     0,
     false,
     9,
     0,
     4,
     0,
     4,
     12},
    {"checksums, killed", 40, 6, 6, 12, 8, 2, 2, 0, 2, false, true, 0, 0, false, 9, 0, 0, 0, 8, 14},
    {"killed changes", 44, 8, 8, 6, 6, 2, 0, 2, 2, true, true, 0, 0, false, 9, 4, 8, 0, 10},
    {"renames", 40, 6, 6, 12, 8, 4, 2, 0, 2, true, false, 0, 0, true, 9, 0, 0, 0, 0, 4, 16},
    {"renames, killed",
     40,
     6,
     6,
     12,
     8,
     4,
     2,
     0,
     2,
     false,
     true,
     0,
     0,
     false,
     9,
     0,
     0,
     0,
     0,
     0,
     20},
};
// Two chunks, so that something can happen in a merge after the first chunk.
constexpr Profile kLongMerge = {"long merge", 40,    4, 4, 26,   26, 0, 0, 0, 0,
                                false,        false, 0, 0, true, 520};

// Not random: see Workload::reuse_during_a_merge().
constexpr Profile kReuse = {
    "reuse during a merge", 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, 0, 0, false, 16};
constexpr Profile kTwoDeletions = {"two deletions", 0,     0, 0, 0,     0,  0, 0, 0, 0,
                                   false,           false, 0, 0, false, 516};
constexpr Profile kMergedChecksums = {
    "checksums of a merge", 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, 0, 0, true, 16, 0, 0, 0, 0, 1};
constexpr Profile kCloned = {"clone of a snapshot", 0, 0, 0, 0, 0, 0, 0, 0, 0};
constexpr Profile kBesideZeros = {"write beside zeros", 0, 0, 0, 0, 0, 0, 0, 0, 0, true};
constexpr Profile kShorter = {"shorter file", 0, 0, 0, 0, 0, 0, 0, 0, 0};
constexpr Profile kFullMerge = {
    "merge on a full disk", 0, 0, 0, 0, 0, 0, 0, 0, 0, false, false, 0, 0, false, 16};
constexpr Profile kFills = {"lazy", 50, 15, 15, 10, 0, 0, 0, 0, 10};
constexpr Profile kFillsKilled = {"lazy, killed", 50, 15, 15, 10, 0, 0, 0, 0, 10, false, true};

}  // namespace

int run_crash_test(int argc, char** argv, Run run, int steps) {
  const int effort = argc > 1 ? atoi(argv[1]) : 1;
  run.random.seed(test_seed());
  for (int round = 0; round < effort; round++) {
    if (argc > 2) {
      run_workload(&run, argv[2], steps);
    } else {
      run_workloads(&run, steps);
    }
  }
  printf("%llu states, %llu killed processes\n", static_cast<unsigned long long>(run.states),
         static_cast<unsigned long long>(run.kills));
  return 0;
}

void run_workloads(Run* run, int steps) {
  Turns profiles(&run->random, std::size(kProfiles) * std::size(kBlockSizes));
  for (const Profile& profile : kProfiles)
    for (const uint32_t block_size : kBlockSizes)
      if (profiles.next()) Workload(run, profile, block_size).go(steps);
  Turns turns(&run->random, 10);
  if (turns.next()) Workload(run, kLongMerge, 4096).go(steps);
  if (turns.next()) Workload(run, kReuse, 4096).reuse_during_a_merge();
  if (turns.next()) Workload(run, kTwoDeletions, 8192).two_deletions();
  if (turns.next()) Workload(run, kMergedChecksums, 4096).merge_with_checksums();
  if (turns.next()) Workload(run, kCloned, 4096).clone_of_a_snapshot();
  if (turns.next()) Workload(run, kFullMerge, 8192).merge_on_a_full_disk();
  if (turns.next()) Workload(run, kBesideZeros, 4096).write_beside_zeros();
  if (turns.next()) Workload(run, kShorter, 4096).shorter_file();
  if (turns.next()) run_workload(run, kFills.name, steps);
  if (turns.next()) run_workload(run, kFillsKilled.name, steps);
}

void run_workload(Run* run, const std::string& name, int steps) {
  if (name == "family") return run_families(run, steps);
  if (name == kLongMerge.name) return Workload(run, kLongMerge, 4096).go(steps);
  if (name == kReuse.name) return Workload(run, kReuse, 4096).reuse_during_a_merge();
  if (name == kCloned.name) return Workload(run, kCloned, 4096).clone_of_a_snapshot();
  if (name == kBesideZeros.name) return Workload(run, kBesideZeros, 4096).write_beside_zeros();
  if (name == kShorter.name) return Workload(run, kShorter, 4096).shorter_file();
  if (name == kFullMerge.name) return Workload(run, kFullMerge, 8192).merge_on_a_full_disk();
  if (name == kTwoDeletions.name) return Workload(run, kTwoDeletions, 8192).two_deletions();
  if (name == kMergedChecksums.name)
    return Workload(run, kMergedChecksums, 4096).merge_with_checksums();
  for (const Profile& lazy : {kFills, kFillsKilled}) {
    if (name != lazy.name) continue;
    for (const uint32_t block_size : kBlockSizes) Workload(run, lazy, block_size).lazy(steps);
    return;
  }
  const auto profile = std::find_if(std::begin(kProfiles), std::end(kProfiles),
                                    [&](const Profile& one) { return name == one.name; });
  CHECK(profile != std::end(kProfiles));
  for (const uint32_t block_size : kBlockSizes) Workload(run, *profile, block_size).go(steps);
}

void run_with_fault(Run* run, const std::string& name, uint32_t block_size, int steps) {
  for (const Profile& profile : kProfiles)
    if (name == profile.name) Workload(run, profile, block_size).go(steps);
  if (name == kFills.name) Workload(run, kFills, block_size).lazy(steps);
}

std::vector<std::string> fault_workloads() {
  std::vector<std::string> names;
  for (const Profile& profile : kProfiles)
    // A commit is checked through its base.
    if (!profile.kills && !profile.commit) names.emplace_back(profile.name);
  names.emplace_back(kFills.name);
  return names;
}