// Being the one writer of an image (docs/format.md, "Locking").
#pragma once

#include <memory>
#include <string>

#include "engine/disk/file.h"

namespace pcow {

// Opens and locks the file. If it was replaced between the two (create --force, a rename), starts
// again with the new one. Waits while the image is being recovered (recovery.h), which does not
// take long.
Result<std::shared_ptr<File>> open_locked(const std::string& path, FileObserver* observer);

// A process that recovers an image shows this by a second lock, on byte 3. It takes this lock
// before the writer's and holds it for longer. Returns false if another process has it. The lock
// goes with the open file.
Result<bool> try_lock_for_recovery(const File& file);

// kLocked, with the process that has the file open for writing, and its host if that is another.
Error locked_by(const File& file);

}  // namespace pcow
