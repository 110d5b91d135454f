#include "addon/daemon_exports.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "addon/arguments.h"
#include "addon/errors.h"

namespace pcow::addon {

namespace {

// `socket` (a path, or "@" and an abstract name), `text`: sends one datagram, as sd_notify(3) does.
Napi::Value notify_manager(const Napi::CallbackInfo& info) {
  const std::string path = text_of(info[0]);
  const std::string text = text_of(info[1]);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return throw_in_js(info.Env(),
                       system_error(ENAMETOOLONG, "can't reach the service manager at " + path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  if (path.starts_with('@')) address.sun_path[0] = '\0';
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int error = fd < 0 ? errno : 0;
  if (fd >= 0) {
    const auto* to = reinterpret_cast<const sockaddr*>(&address);
    if (::sendto(fd, text.data(), text.size(), MSG_NOSIGNAL, to, length) < 0) error = errno;
    ::close(fd);
  }
  if (error != 0)
    return throw_in_js(info.Env(),
                       system_error(error, "can't reach the service manager at " + path));
  return info.Env().Undefined();
}

// `file`: from now on, standard output and standard error are appended to it, also those of native
// code.
Napi::Value log_to(const Napi::CallbackInfo& info) {
  const std::string file = text_of(info[0]);
  const int fd = ::open(file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  if (fd < 0)
    return throw_in_js(info.Env(), system_error(errno, "can't append to the log file " + file));
  ::dup2(fd, STDOUT_FILENO);
  ::dup2(fd, STDERR_FILENO);
  ::close(fd);
  return info.Env().Undefined();
}

}  // namespace

void export_daemon(Napi::Env env, Napi::Object exports) {
  exports.Set("notifyManager", Napi::Function::New<notify_manager>(env, "notifyManager"));
  exports.Set("logTo", Napi::Function::New<log_to>(env, "logTo"));
}

}  // namespace pcow::addon
