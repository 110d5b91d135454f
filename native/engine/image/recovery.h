// What is done after a writer was killed (docs/durability.md).
#pragma once

#include <string>

#include "engine/error.h"

namespace pcow {

enum class Recovery {
  kNothing,    // the image is clean, or the page cache of its last writer is gone
  kRecovered,  // the image is clean now
  kInUse,      // another process has it open for writing, or recovers it
};

// Makes durable what a dead writer has left in the page cache, by opening the image for writing and
// closing it: then a host crash loses nothing of it. The image's base is not opened, and need not
// exist. A process that wants to write the image waits meanwhile.
Result<Recovery> recover_image(const std::string& path);

}  // namespace pcow
