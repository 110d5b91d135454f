// The monitor's messages. Details go to the file or descriptor that PCOW_MONITOR_LOG names (a path
// or a number); notices for the operator go to standard error as well. Only write(2) is used:
// another thread may hold the locks of stdio while it waits for the monitor.
#pragma once

#include <string>

namespace pcow {

void log_detail(const std::string& text);  // only if PCOW_MONITOR_LOG is set
void log_notice(const std::string& text);  // to the log and to standard error

}  // namespace pcow
