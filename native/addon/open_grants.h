// Flat files that the native operations open and close without JavaScript.
//
// JavaScript keeps a list of who has each flat file open, and decides who may open it. After it has
// opened one, it grants further opens of the same kind: they do the same again. As soon as anything
// needs the list, or the answer might be another one, it takes the grant back, and with it the open
// files: from then on they are as if JavaScript had opened them, except that it is told when they
// are closed.
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

  // Before the mount's first request. `tell` returns at once.
  void on_release(std::function<void(uint64_t)> tell) { tell_ = std::move(tell); }

  struct Open {
    uint64_t fh;
    bool writable;
  };
  // JavaScript thread. `image`: the opening that serves the files.
  void grant(const std::string& name, std::shared_ptr<SharedImage> image);
  // JavaScript thread. Returns the files that are open: JavaScript closes them from now on.
  std::vector<Open> take_back(const std::string& name);

  // Any thread. The image that a file opened now would use; null if JavaScript must be asked.
  std::shared_ptr<SharedImage> find(const std::string& name, bool writable) const;
  // Any thread. Returns the number of the handle, which has the image that find() has returned; 0
  // if the grant has been taken back since.
  uint64_t open(const std::string& name, std::shared_ptr<FuseHandle> handle);
  // Any thread: the file that open() has opened is closed.
  void release(const std::string& name, uint64_t fh);

 private:
  struct Grant {
    std::shared_ptr<SharedImage> image;
    std::unordered_map<uint64_t, bool> open;  // whether it is writable
  };

  std::function<void(uint64_t)> tell_;
  // Guards grants_. Held for short times only.
  mutable std::mutex lock_;
  std::unordered_map<std::string, Grant> grants_;
};

}  // namespace pcow::addon
