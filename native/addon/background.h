// Work that gives way to everything else on the machine.
#pragma once

#include <functional>

namespace pcow::addon {

// Does it on a thread of its own, at the lowest priority for the processors and for the disk, and returns when it is done: a
// thread whose priority was lowered may not raise it again.
void run_in_background(const std::function<void()>& work);

}  // namespace pcow::addon
