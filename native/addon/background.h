// Work with the lowest priority on the machine.
#pragma once

#include <functional>

namespace pcow::addon {

// Runs `work` on a new thread with the lowest priority for processors and disk, and waits until it
// is done. A new thread, because a thread that has lowered its priority may not raise it again.
void run_in_background(const std::function<void()>& work);

}  // namespace pcow::addon
