// Flat files that the native operations open and close without JavaScript.
//
// JavaScript keeps a list of the uses of each flat file, and decides which opens it permits. After
// it has opened a flat file, it grants further opens that would have the same result. As soon as
// anything needs the list, or an open might have another result, JavaScript takes the grant back,
// and with it the open files: from then on they are as if JavaScript had opened them, except that
// on_release()'s function reports to JavaScript when they are closed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "addon/fuse_handles.h"
#include "addon/shared_image.h"

namespace pcow::addon {

class OpenGrants {
 public:
  // The only instance of the process. Never destroyed: FUSE threads may outlive static objects.
  static OpenGrants& instance();

  // Call it before the mount's first request. `tell` must return at once.
  void on_release(std::function<void(uint64_t)> tell) { tell_ = std::move(tell); }

  struct Open {
    uint64_t fh;
    bool writable;
  };
  // JavaScript thread. `image`: the opening of the image that serves the files.
  void grant(const std::string& name, std::shared_ptr<SharedImage> image);
  // JavaScript thread. Returns the files that are open: from now on JavaScript must close them.
  std::vector<Open> take_back(const std::string& name);

  // Any thread. The image that a file which is opened now uses; null if JavaScript must be asked.
  std::shared_ptr<SharedImage> find(const std::string& name, bool writable) const;
  // Any thread. `handle` has the image that find() returned. Returns the number of the handle, or 0
  // if JavaScript has taken the grant back since.
  uint64_t open(const std::string& name, std::shared_ptr<FuseHandle> handle);
  // Any thread: the file that open() has opened is closed.
  void release(const std::string& name, uint64_t fh);

 private:
  struct Grant {
    std::shared_ptr<SharedImage> image;
    std::unordered_map<uint64_t, bool> open;  // by handle: whether it is writable
  };

  std::function<void(uint64_t)> tell_;
  // Guards grants_. Held for short times only.
  mutable std::mutex lock_;
  std::unordered_map<std::string, Grant> grants_;
};

}  // namespace pcow::addon
