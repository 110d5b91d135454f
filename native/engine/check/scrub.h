// The result of a scrub: docs/check.md, "Scrub".
#pragma once

#include "engine/check/check.h"

namespace pcow {

struct ScrubbedLayer {
  uint64_t id = 0;
  std::string snapshot;  // its name; empty: it was deleted, and other layers stand on it
  bool has_checksums = false;
  uint64_t covered = 0;  // bytes that have checksums
  uint64_t missing = 0;  // bytes that have none
};

struct ScrubReport {
  std::string path;
  std::vector<ScrubbedLayer> layers;  // all frozen layers
  uint64_t verified = 0;              // bytes that match their checksums
  uint64_t damages = 0;
  std::vector<Finding> findings;  // the first kListedFindings of them
};

}  // namespace pcow
