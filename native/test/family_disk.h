// The disks of several image files that belong together, under one directory: what a power cut
// could leave of all of them. Each file is in a state of its own, and so is each directory: a name
// that was given or removed is certainly so on the disk only after a sync of the directory.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "disk_simulator.h"
#include "names_door.h"

namespace crash {

class FamilyDisk {
 public:
  // Paths are relative to `root`, which contains the real files.
  explicit FamilyDisk(std::string root) : root_(std::move(root)) {}

  // The file was made and named, and is durable with its name.
  void adopt(const std::string& path);
  DiskSimulator& file(const std::string& path) { return *files_.at(path); }

  // Something has happened to a name. A draft (engine/image/names.h) may exist after a power cut or
  // not, and this does not matter; but it matters whether its content was on the disk when it got
  // its name.
  void apply(NameEvent event, const std::string& path, const std::string& second);

  // Makes the file hold what every process sees: what a dead process has stored since its death is
  // undone.
  void restore(const std::string& path);

  // By path; a file that is absent has no name. Two names of one file have the same pointer.
  using State = std::map<std::string, std::shared_ptr<DiskState>>;
  // States that a power cut could leave now.
  void sample(size_t budget, std::mt19937_64* random, const std::function<void(State)>& use) const;

 private:
  using FileNames = std::map<std::string, std::shared_ptr<DiskSimulator>>;  // by path
  struct Change {
    std::string path;
    std::shared_ptr<DiskSimulator> file;  // null: the name is removed
  };
  using Changes = std::vector<Change>;  // in one step
  struct LayerDirectory {
    FileNames durable;
    std::vector<Changes> since;  // the last sync
  };
  static void change(FileNames* names, const Changes& changes);
  void change_names(Changes changes);
  void sync_names(const std::string& directory);
  std::shared_ptr<DiskSimulator> file_of_draft(const std::string& path, const std::string& name);

  std::string root_;
  FileNames files_;  // as every process sees them
  std::map<std::string, LayerDirectory> directories_;
  // By path: what is on the disk of the drafts that were synced.
  std::map<std::string, DiskState> drafts_;
};

}  // namespace crash
