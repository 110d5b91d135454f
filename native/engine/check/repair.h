// Mending an image (docs/check.md, "Repair").
#pragma once

#include <memory>

#include "engine/check/check.h"
#include "engine/disk/file.h"

namespace pcow {

// `file` must be open for writing, and locked.
Result<CheckReport> repair(const std::shared_ptr<File>& file, const CheckOptions& options,
                           const Progress& progress);

}  // namespace pcow
