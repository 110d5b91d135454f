#include "monitor/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <utility>

#include "monitor/threads.h"

namespace pcow {
namespace {

// The monitor's threads have their own table of descriptors, so a descriptor of the application is
// borrowed.
int open_log() {
  const char* where = getenv("PCOW_MONITOR_LOG");
  if (!where || !*where) return -1;
  if (isdigit(static_cast<unsigned char>(*where)))
    return threads::borrow(atoi(where), getpid()).release();
  return open(where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
}

void put(int descriptor, const std::string& line) {
  // Best effort: a failure to write the log cannot be reported anywhere.
  if (descriptor >= 0 && write(descriptor, line.data(), line.size()) < 0) return;
}

// A child of fork(2) opens the log again: its monitor threads have another table of descriptors.
int log_descriptor() {
  static std::mutex opening;
  static pid_t opened_by = 0;
  static int descriptor = -1;
  const std::lock_guard lock(opening);
  if (std::exchange(opened_by, getpid()) != getpid()) descriptor = open_log();
  return descriptor;
}

// The time has the same format as in the mount's log: 2026-01-01T12:00:00.000Z.
std::string stamped(const std::string& text) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc = {};
  gmtime_r(&now.tv_sec, &utc);
  char time[sizeof "2026-01-01T12:00:00"];
  const size_t length = strftime(time, sizeof time, "%FT%T", &utc);
  return std::string(time, length) + "." +
         std::to_string(1000 + now.tv_nsec / 1'000'000).substr(1) + "Z " + text + "\n";
}

}  // namespace

// Not on a thread of the application: there, the log's descriptor number means another file.
void log_detail(const std::string& text) {
  if (threads::is_own()) put(log_descriptor(), stamped(text));
}

void log_notice(const std::string& text) {
  log_detail(text);
  const std::string line = "pcow: " + text + "\n";
  if (!threads::is_own()) return put(STDERR_FILENO, line);
  put(threads::borrow(STDERR_FILENO, getpid()).number(), line);
}

}  // namespace pcow
