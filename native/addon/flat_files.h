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
#include <string_view>
#include <unordered_map>

#include "addon/fuse_nodes.h"
#include "addon/shared_image.h"

namespace pcow::addon {

// Both return names: of the image file of a flat file, and of the flat file of a file in the image
// directory. flat_file_of() returns nothing if the file cannot be an image.
std::string image_file_of(const std::string& name);
std::optional<std::string> flat_file_of(std::string_view file);

struct FlatFile {
  dev_t device = 0;  // of the image file, as is the next member
  ino_t inode = 0;
  uint64_t number = 0;  // the inode number in the mount
  std::weak_ptr<SharedImage> image;
  bool lent = false;  // to a monitor: its stores change the times, and nothing reports that
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
  // Any thread. The stat(2) of the flat file `name`, whose image file is in the open `directory`.
  // Returns nothing if JavaScript must be asked.
  std::optional<KeptStatus> status(int directory, const std::string& name) const;

 private:
  std::optional<FlatFile> find(const std::string& name) const;

  // Guards files_. Held for short times only.
  mutable std::mutex lock_;
  // One element for each name that was registered, until it is forgotten.
  std::unordered_map<std::string, FlatFile> files_;
};

}  // namespace pcow::addon
