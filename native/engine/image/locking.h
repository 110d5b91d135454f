// Being the one writer of an image (docs/format.md, "Locking").
#pragma once

#include <memory>
#include <string>

#include "engine/disk/file.h"

namespace pcow {

// Opens and locks; a file that was replaced between the two (create --force, a rename) is let go again. Waits while the image
// is being recovered (recovery.h), which is soon over.
Result<std::shared_ptr<File>> open_locked(const std::string& path, FileObserver* observer);

// Whoever recovers an image says so by a second lock, on byte 3, which it takes before the writer's and keeps for longer.
// false: somebody else has it. It goes with the open file.
Result<bool> try_lock_for_recovery(const File& file);

// kLocked, naming the process that has the file open for writing.
Error locked_by(const File& file);

}  // namespace pcow
