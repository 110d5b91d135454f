// What comes after a writer that was killed (docs/durability.md).
#pragma once

#include <string>

#include "engine/error.h"

namespace pcow {

enum class Recovery {
  kNothing,    // nothing is to be saved: the image is clean, or the page cache of its last writer is gone
  kRecovered,  // the image is clean now
  kInUse,      // somebody has it open for writing, or recovers it
};

// Makes durable what a writer that has died has left in the page cache, by opening the image for writing and closing it:
// then nothing is lost when the host is started anew. Its base is left alone, and need not be there. Whoever wants to
// write the image waits meanwhile.
Result<Recovery> recover_image(const std::string& path);

}  // namespace pcow
