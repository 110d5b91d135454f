// Interposes the functions of the C library that change names of files: the engine's calls
// (engine/image/names.h) go through here in every native test, so that a simulated disk can observe
// them.
#pragma once

#include <string>

enum class NameEvent { kLink, kRename, kUnlink, kSync };

class NameObserver {
 public:
  virtual ~NameObserver() = default;
  // Called after the change, on the thread that made it. `second`: the new name of a link or a
  // rename. kSync: of a file or a directory.
  virtual void saw(NameEvent event, const std::string& path, const std::string& second) = 0;
};

// The observer of this process, or null.
inline NameObserver* name_observer = nullptr;
