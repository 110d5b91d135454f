// What an image needs from its filesystem (docs/filesystems.md): sparse files, reserved space,
// holes, shared mappings that agree with reads and writes, and locks.
#pragma once

#include <string>

#include "engine/error.h"

namespace pcow {

// The error (kUnsupported) of a filesystem that lacks something; `lack` as in "cannot punch holes".
Error lacking(const std::string& path, const std::string& lack);

// Tries everything except the locks with an empty file, which is empty again afterwards.
Result<void> check_needs(const std::string& path);

}  // namespace pcow
