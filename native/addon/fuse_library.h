// Finds functions of libfuse, which is loaded at run time.
#pragma once

#include <dlfcn.h>

namespace pcow::addon {

// Returns false if `library` has no function with this name and version. (Without a version, dlsym
// would find the oldest one.)
template <typename Function>
bool find_function(void* library, const char* name, const char* version, Function* found) {
  *found = reinterpret_cast<Function>(dlvsym(library, name, version));
  return *found != nullptr;
}

}  // namespace pcow::addon
