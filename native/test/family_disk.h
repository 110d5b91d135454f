// The disks of several image files that belong together, under one directory: what a power cut could leave of all of them.
// Each file is in a state of its own, and so is each directory: a name that was given or taken away is surely so on the disk after a sync
// of the directory only.
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
  // Paths are relative to `root`, where the files really are.
  explicit FamilyDisk(std::string root) : root_(std::move(root)) {}

  // The file has been made and named, and is durable with its name.
  void adopt(const std::string& path);
  DiskSimulator& file(const std::string& path) { return *files_.at(path); }

  // Something has happened to a name. What is a draft (engine/image/names.h) may be there after a power cut or not, and nobody cares; but whether
  // its content was on the disk when it got its name counts.
  void apply(NameEvent event, const std::string& path, const std::string& second);

  // The file really holds what every process sees: what a dead process has stored since its death is undone.
  void restore(const std::string& path);

  // By path; what is not there has no name. Names of one file have the same pointer.
  using State = std::map<std::string, std::shared_ptr<DiskState>>;
  // States that a power cut could leave now.
  void sample(size_t budget, std::mt19937_64* random, const std::function<void(State)>& use) const;

 private:
  using FileNames = std::map<std::string, std::shared_ptr<DiskSimulator>>;  // by path
  struct Change {
    std::string path;
    std::shared_ptr<DiskSimulator> file;  // null: the name goes
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
  std::map<std::string, DiskState> drafts_;  // by path: what is on the disk of those that were synced
};

}  // namespace crash
