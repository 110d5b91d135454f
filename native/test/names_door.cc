#include "names_door.h"

#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <cstdio>

namespace {

// The original function.
template <typename Call>
Call next(const char* name) {
  return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

int tell(int outcome, NameEvent event, const char* path, const char* second) {
  if (name_observer && outcome == 0) name_observer->saw(event, path, second);
  return outcome;
}

int tell_sync(int outcome, int descriptor) {
  char path[PATH_MAX + 1];
  if (!name_observer || outcome != 0) return outcome;
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = readlink(link.c_str(), path, PATH_MAX);
  path[length < 0 ? 0 : length] = 0;
  return tell(outcome, NameEvent::kSync, path, "");
}

}  // namespace

extern "C" {

int link(const char* path, const char* second) noexcept {
  static const auto real = next<int (*)(const char*, const char*)>("link");
  return tell(real(path, second), NameEvent::kLink, path, second);
}

int rename(const char* path, const char* second) noexcept {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return tell(real(path, second), NameEvent::kRename, path, second);
}

int renameat2(int from, const char* path, int to, const char* second, unsigned int flags) noexcept {
  static const auto real =
      next<int (*)(int, const char*, int, const char*, unsigned int)>("renameat2");
  return tell(real(from, path, to, second, flags), NameEvent::kRename, path, second);
}

int unlink(const char* path) noexcept {
  static const auto real = next<int (*)(const char*)>("unlink");
  return tell(real(path), NameEvent::kUnlink, path, "");
}

int fsync(int descriptor) {
  static const auto real = next<int (*)(int)>("fsync");
  return tell_sync(real(descriptor), descriptor);
}

int fdatasync(int descriptor) {
  static const auto real = next<int (*)(int)>("fdatasync");
  return tell_sync(real(descriptor), descriptor);
}

}  // extern "C"
