// The flat files that stat(2) is answered for without JavaScript: by their names in the mount, as JavaScript has told of them. Nothing is
// believed that the image directory could contradict: each answer looks at the image file again, and where another file has the name, or
// the image was closed, JavaScript is asked anew.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "addon/shared_image.h"

namespace pcow::addon {

struct FlatFile {
  dev_t device = 0;  // these two of the image file
  ino_t inode = 0;
  uint64_t number = 0;  // the inode number in the mount
  std::weak_ptr<SharedImage> image;
};

class FlatFiles {
 public:
  // The process's. Never destroyed: FUSE threads may outlive static objects.
  static FlatFiles& instance();

  // Any thread.
  void tell(const std::string& name, FlatFile file);
  // Any thread. What stat(2) says of the flat file `name`, whose image file is `file` in the directory with this descriptor; nothing: ask
  // JavaScript.
  std::optional<struct stat> status(int directory, const std::string& name, const std::string& file) const;

 private:
  std::optional<FlatFile> find(const std::string& name) const;

  // Guards files_. Held for moments.
  mutable std::mutex lock_;
  // One entry for each name that was ever told of.
  std::unordered_map<std::string, FlatFile> files_;
};

}  // namespace pcow::addon
