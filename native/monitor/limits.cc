#include "monitor/limits.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace pcow {
namespace {

uint64_t number_from_environment(const char* name, uint64_t fallback) {
  const char* text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : fallback;
}

uint64_t read_number(const std::string& path, uint64_t fallback) {
  std::ifstream file(path);
  uint64_t number;
  return file >> number ? number : fallback;
}

// The smallest memory limit of this process's control group and of the groups above it; UINT64_MAX
// if there is none. "max", and the huge number that version 1 uses instead, mean no limit.
// cgroups(7)
uint64_t limit_of_control_groups() {
  uint64_t least = UINT64_MAX;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && controllers != "memory") continue;
    const std::string root = version_2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const std::string name = version_2 ? "/memory.max" : "/memory.limit_in_bytes";
    std::string path = line.substr(second + 1);
    for (;;) {
      least = std::min(least, read_number(root + path + name, UINT64_MAX));
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos || path.empty()) break;
      path.resize(slash);
    }
  }
  return least;
}

}  // namespace

Session::Limits process_limits() {
  const auto memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t mappings = read_number("/proc/sys/vm/max_map_count", 65530);
  // The rest is for the application, and for runs that end where one of its mapping calls split a
  // mapping.
  return {
      number_from_environment("PCOW_CLEAN_CACHE", std::min(memory, limit_of_control_groups()) / 4),
      number_from_environment("PCOW_MAPPING_BUDGET", mappings / 4 * 3),
      number_from_environment("PCOW_DEMOTE_ALWAYS", 0) != 0};
}

}  // namespace pcow
