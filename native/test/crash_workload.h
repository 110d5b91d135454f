// Workloads whose power is cut. The engine works on an image, and every file operation also goes to
// a simulated disk. At every sync, and sometimes in between, states of the disk that a power cut
// could leave at this moment are made into files, and opened as after a new boot of the host:
// read-only, then for writing. Each must open, and hold
//   - every sector as it was at the last sync that returned, or as written since, and no other
//     content
//   - every snapshot whose call returned, bit for bit; any other snapshot as a whole, or not at all
// and must be usable afterwards. In some recoveries the power is cut as well, and in some workloads
// a process is killed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "engine/error.h"

// A fault of the machine among a run's file operations: the operation with this number fails,
// unless it is a store (and, if the fault lasts, so do the following ones of the same step of the
// workload).
struct Fault {
  int err = 0;
  uint64_t operation = 0;  // counted down
  bool lasts = false;
  bool of_space = false;  // only operations that need space are counted, and fail
  bool struck = false;
};

// What a run counts, and where it is, for the sentence about a failure. A failure ends the program
// with exit code 1.
struct Run {
  std::mt19937_64 random;
  uint64_t states = 0;
  uint64_t kills = 0;
  uint64_t stamps = 0;
  std::string where;
  std::string operation;
  Fault fault;  // err 0: none
  std::string fault_name;
  // For its files, which are temporary: thousands of states are written.
  std::string place = "/dev/shm";
  // Reads and writes are done piece by piece, with signals in between.
  bool interrupts = false;
  // The image begins in persistent memory, and is carried to a disk and back.
  bool persistent = false;
  // What the sectors of remote sub-blocks hold, wherever they are stored.
  std::vector<uint64_t> registry;

  [[noreturn]] void fail(const std::string& what) const {
    fprintf(stderr, "%s, in %s, state %llu: %s %s\n", where.c_str(), operation.c_str(),
            static_cast<unsigned long long>(states), what.c_str(), fault_name.c_str());
    exit(1);
  }
  template <typename T>
  T must(pcow::Result<T> result, const char* what) const {
    if (!result) fail(std::string(what) + ": " + result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
  }
};

// The main function of crash_test and persistent_crash_test, with their arguments [EFFORT
// [WORKLOAD]]: EFFORT rounds of all workloads, or of one. Returns the exit code.
int run_crash_test(int argc, char** argv, Run run, int steps);
// All workloads, with so many steps of each.
void run_workloads(Run* run, int steps);
// One workload, by its name; or "family": several images at once (family.h).
void run_workload(Run* run, const std::string& name, int steps);
// One workload, with this block size. With `run->fault` there are fewer power cuts, because the run
// is one of many.
void run_with_fault(Run* run, const std::string& name, uint32_t block_size, int steps);
// The workloads that run_with_fault() accepts.
std::vector<std::string> fault_workloads();
