// What the mount of a file offers to monitors, as the extended attributes of the file say.
#pragma once

#include <cstdint>
#include <string>

namespace pcow {

struct Offer {
  std::string socket;  // empty: it is not a file of a mount that serves monitors
  uint64_t layer = 0;  // of the snapshot whose file it is; 0: it is a flat file
};

// Keeps errno. Returns an errno if the mount does not answer.
int find_offer(int descriptor, Offer* offer);

}  // namespace pcow
