#include "addon/attach_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace pcow::addon {

using protocol::Descriptor;

Result<Descriptor> listen_at(const std::string& path) {
  const std::string what = "can't listen for monitors at " + path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return system_error(ENAMETOOLONG, what);
  std::memcpy(address.sun_path, path.data(), path.size());
  Descriptor listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return system_error(errno, what);
  if (unlink(path.c_str()) < 0 && errno != ENOENT) return system_error(errno, what);
  // Everyone may connect: the open flat file that a monitor sends proves its right.
  if (bind(listener.number(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 ||
      chmod(path.c_str(), 0666) < 0 || listen(listener.number(), SOMAXCONN) < 0)
    return system_error(errno, what);
  return listener;
}

}  // namespace pcow::addon
