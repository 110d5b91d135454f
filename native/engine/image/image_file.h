// The file of an open image, and how it was opened: what stays the same while the image is open.
// All parts of an open image (image_state.h) refer to it.
#pragma once

#include <memory>
#include <string>

#include "engine/disk/file.h"
#include "engine/format/geometry.h"
#include "engine/image/image.h"

namespace pcow {

struct ImageFile {
  const std::string path;
  const OpenOptions options;
  const std::shared_ptr<File> file;
  const Geometry geometry;

  bool writable() const { return options.write; }
  Error closed_error() const { return Error(Code::kClosed, path + " has been closed"); }
  Error stale_error() const {
    return Error(Code::kBaseChanged, path + ": one of its bases keeps changing");
  }
};

}  // namespace pcow
