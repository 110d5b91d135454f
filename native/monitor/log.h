// The monitor's words: to the file or descriptor that PCOW_MONITOR_LOG names (a path, or a number), and what the operator
// must know to standard error. By write(2) alone: another thread may hold the locks of stdio while it waits for us.
#pragma once

#include <string>

namespace pcow {

void log_detail(const std::string& text);  // only where PCOW_MONITOR_LOG is set
void log_notice(const std::string& text);  // there, and to standard error

}  // namespace pcow
