// How a file gets and loses its name, and the locks that say which process may do that
// (docs/format.md, "Locking"). In the engine, in src/ and in cli/, files of an image directory are
// linked, renamed and unlinked only here.
#pragma once

#include <string>

#include "engine/error.h"

namespace pcow {

// The effect of each of the three is durable on return: first the file, then its name, then the
// directory (both, if it moves).

// Gives a complete file its name. `replace`: a file that has the name is replaced in one step;
// otherwise kExists.
Result<void> give_name(const std::string& draft, const std::string& name, bool replace);
// Adds a second name to a file; no error if the file has it already, kExists if another file has
// it.
Result<void> add_name(const std::string& name, const std::string& second);
Result<void> remove_name(const std::string& name);

// Makes the present names in a directory durable. `path`: of a file in the directory.
Result<void> sync_directory_of(const std::string& path);

// Bytes of an image file on which open-file-description locks (fcntl(2)) are taken.
enum class LockByte {
  kWriter = 0,  // exclusive: the writer of the image
  // Shared: a process that makes or moves an image that stands on this one. Exclusive: a process
  // that removes what other images may stand on.
  kStanding = 1,
  kDraft = 2,  // exclusive: the maker of the file, while it is a draft
};
// Returns a descriptor of the file that has this name, which holds the lock until it is closed. If
// another process holds the lock, returns -1, or, for the writer's byte, fails with kLocked and
// names the process. An exclusive lock needs the right to write the file.
Result<int> lock_file(const std::string& path, LockByte byte, bool exclusive);

// A file appears under its name only when it is complete. Until then it is a draft: a hidden file
// beside it, with kDraft locked.
struct Draft {
  std::string path;
  // Holds the lock. The caller closes it after the file has got its name or was removed.
  int descriptor = -1;
};
// Makes an empty draft for the file `name`.
Result<Draft> make_draft(const std::string& name);
// The error with the file's name instead of its draft's: users know only the former.
Error by_name(Error error, const std::string& draft, const std::string& name);
// Whether a directory can contain images at all (disk/needs.h): tried with a draft, which is then
// removed.
Result<void> check_directory(const std::string& directory);
// Removes a draft whose maker was killed. Returns false if a process holds it, or if it is gone.
Result<bool> remove_left_draft(const std::string& path);

}  // namespace pcow
