// Whether this thread is at work for the monitor. The engine and the C++ library call the very functions that hooks.cc
// interposes; such a call goes straight to the kernel, or it would wait for a lock that its own caller holds.
#pragma once

namespace pcow {

class Inside {
 public:
  Inside() { depth_++; }
  ~Inside() { depth_--; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  static bool active() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
};

}  // namespace pcow
