#include "log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <ctime>

namespace pcow {
namespace {

int open_log() {
  const char* where = getenv("PCOW_MONITOR_LOG");
  if (!where || !*where) return -1;
  if (isdigit(static_cast<unsigned char>(*where))) return atoi(where);
  return open(where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
}

void put(int descriptor, const std::string& line) {
  // Best effort: there is nobody to tell that a log cannot be written.
  if (descriptor >= 0 && write(descriptor, line.data(), line.size()) < 0) return;
}

int log_descriptor() {
  static const int descriptor = open_log();
  return descriptor;
}

std::string stamped(const std::string& text) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return std::to_string(now.tv_sec) + "." + std::to_string(1000 + now.tv_nsec / 1'000'000).substr(1) + " " + text +
         "\n";
}

}  // namespace

void log_detail(const std::string& text) {
  if (log_descriptor() >= 0) put(log_descriptor(), stamped(text));
}

void log_notice(const std::string& text) {
  log_detail(text);
  put(STDERR_FILENO, "pcow: " + text + "\n");
}

}  // namespace pcow
