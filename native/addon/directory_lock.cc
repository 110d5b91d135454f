#include "addon/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "addon/arguments.h"
#include "addon/errors.h"
#include "engine/error.h"

namespace pcow::addon {

namespace {

// `directory`. Returns the lock's descriptor. Throws kLocked if another process, or another mount
// of this process, has the lock.
Napi::Value lock_directory(const Napi::CallbackInfo& info) {
  const std::string directory = text_of(info[0]);
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return throw_in_js(info.Env(),
                       system_error(errno, "can't open the image directory " + directory));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int err = errno;
    ::close(fd);
    if (err == EWOULDBLOCK)
      return throw_in_js(info.Env(),
                         Error(Code::kLocked, directory + " is served by another mount"));
    return throw_in_js(info.Env(),
                       system_error(err, "can't lock the image directory " + directory));
  }
  return Napi::Number::New(info.Env(), fd);
}

// The descriptor that lock_directory() returned.
Napi::Value unlock_directory(const Napi::CallbackInfo& info) {
  ::close(info[0].ToNumber().Int32Value());
  return info.Env().Undefined();
}

}  // namespace

void export_directory_lock(Napi::Env env, Napi::Object exports) {
  exports.Set("lockDirectory", Napi::Function::New<lock_directory>(env, "lockDirectory"));
  exports.Set("unlockDirectory", Napi::Function::New<unlock_directory>(env, "unlockDirectory"));
}

}  // namespace pcow::addon
