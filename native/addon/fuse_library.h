// Functions of the libfuse that is loaded at run time.
#pragma once

#include <dlfcn.h>

namespace pcow::addon {

// false: the open `library` has none of that name and version. (Without a version, dlsym would find the oldest.)
template <typename Function>
bool find_function(void* library, const char* name, const char* version, Function* found) {
  *found = reinterpret_cast<Function>(dlvsym(library, name, version));
  return *found != nullptr;
}

}  // namespace pcow::addon
