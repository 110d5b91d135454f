// Being the one writer of an image (docs/format.md, "Locking").
#pragma once

#include <memory>
#include <string>

#include "file.h"

namespace pcow {

// Opens and locks; a file that was replaced between the two (create --force, a rename) is let go again.
Result<std::shared_ptr<File>> open_locked(const std::string& path, FileObserver* observer);

// kLocked, naming the process that has the file open for writing.
Error locked_by(const File& file);

}  // namespace pcow
