// How a file gets its name and loses it, and the locks that say who may do that (docs/format.md, "Locking"). The one place of the
// engine, of src/ and of cli/ where files of an image directory are linked, renamed and unlinked.
#pragma once

#include <string>

#include "engine/error.h"

namespace pcow {

// Each of the three is durable when it returns: first the file, then its name, then the directory (both, where it moves).

// Gives a complete file its name. `replace`: whatever has that name now gives way, in one step; else it is kExists.
Result<void> give_name(const std::string& draft, const std::string& name, bool replace);
// A second name for a file, which may have it already; kExists where another file has it.
Result<void> add_name(const std::string& name, const std::string& second);
Result<void> remove_name(const std::string& name);

// The names in a directory as they are now are on the disk when it returns. `path`: of a file in it.
Result<void> sync_directory_of(const std::string& path);

// Bytes of an image file on which open-file-description locks (fcntl(2)) are taken.
enum class LockByte {
  kWriter = 0,  // exclusively: who writes the image
  kStanding =
      1,  // shared: who makes or moves an image that stands on it. Exclusively: who takes away what others stand on
  kDraft = 2,  // exclusively: who makes the file, as long as it is a draft
};
// A descriptor that holds the lock until it is closed, of the file that has that name; -1: somebody holds it (kLocked, with who that
// is, for the writer's byte). An exclusive lock wants the right to write the file.
Result<int> lock_file(const std::string& path, LockByte byte, bool exclusive);

// A file appears under its name only when it is complete. Until then it is a draft: a hidden file beside it, with kDraft locked.
struct Draft {
  std::string path;
  int descriptor = -1;  // holds the lock; the caller's to close, after the file has its name or is removed
};
// An empty one for the file `name`.
Result<Draft> make_draft(const std::string& name);
// Users know the file by its name, not by that of its draft.
Error by_name(Error error, const std::string& draft, const std::string& name);
// Whether images can be in a directory at all (disk/needs.h): tried with a draft, which is removed again.
Result<void> check_directory(const std::string& directory);
// Removes a draft that nobody holds: its maker was killed. false: it is held, or gone.
Result<bool> remove_left_draft(const std::string& path);

}  // namespace pcow
