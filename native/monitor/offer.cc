#include "monitor/offer.h"

#include <sys/xattr.h>

#include <cerrno>
#include <charconv>

#include "attach/protocol.h"

namespace pcow {

int find_offer(int descriptor, Offer* offer) {
  char text[160];
  const int before = errno;
  ssize_t count = fgetxattr(descriptor, protocol::kAttribute, text, sizeof text);
  const bool is_flat = count >= 0;
  if (!is_flat && errno == ENODATA)
    count = fgetxattr(descriptor, protocol::kSnapshotAttribute, text, sizeof text);
  const int err = count < 0 ? errno : 0;
  errno = before;
  if (count > 0) {
    const char* path = text;
    const char* const end = text + count;
    if (!is_flat) path = std::from_chars(text, end, offer->layer).ptr + 1;
    if (path < end) offer->socket.assign(path, end);
  }
  // The kernel's answer for a filesystem whose process has ended.
  return err == ENOTCONN || err == ECONNABORTED ? err : 0;
}

}  // namespace pcow
