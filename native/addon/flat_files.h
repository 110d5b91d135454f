// The flat files for which stat(2) is answered without JavaScript, by their names in the mount.
// JavaScript registers them. Each answer checks the image file again: if another file has the name
// now, or the image was closed, JavaScript is asked.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "addon/shared_image.h"

namespace pcow::addon {

struct FlatFile {
  dev_t device = 0;  // of the image file, as is the next member
  ino_t inode = 0;
  uint64_t number = 0;  // the inode number in the mount
  std::weak_ptr<SharedImage> image;
};

class FlatFiles {
 public:
  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static FlatFiles& instance();

  // Any thread.
  void tell(const std::string& name, FlatFile file);
  // Any thread. The image is gone, or has another name.
  void forget(const std::string& name);
  // Any thread.
  size_t size() const;
  // Any thread. The stat(2) of the flat file `name`, whose image file is `file` in the open
  // directory `directory`. Returns nothing if JavaScript must be asked.
  std::optional<struct stat> status(int directory, const std::string& name, const std::string& file) const;

 private:
  std::optional<FlatFile> find(const std::string& name) const;

  // Guards files_. Held for short times only.
  mutable std::mutex lock_;
  // One element for each name that was registered, until it is forgotten.
  std::unordered_map<std::string, FlatFile> files_;
};

}  // namespace pcow::addon
