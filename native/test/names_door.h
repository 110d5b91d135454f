// The door of the C library, as far as names of files are concerned: the engine's calls (engine/image/names.h) pass here in every native test,
// and whoever simulates a disk sees them.
#pragma once

#include <string>

enum class NameEvent { kLink, kRename, kUnlink, kSync };

class NameObserver {
 public:
  virtual ~NameObserver() = default;
  // After it was done, on the thread that did it. `second`: the new name of a link or a rename. kSync: of a file or a directory.
  virtual void saw(NameEvent event, const std::string& path, const std::string& second) = 0;
};

// The one of this process, or null.
inline NameObserver* name_observer = nullptr;
