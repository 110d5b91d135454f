// Whether this thread is one of the monitor's. The engine and the C++ library call the very functions that hooks.cc interposes; such a
// call goes straight to the kernel, or it would wait for itself.
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
  // The loader has made room for it before anything runs: other models may call malloc(3) at the first access, which may be in malloc.
  __attribute__((tls_model("initial-exec"))) static inline thread_local int depth_ = 0;
};

}  // namespace pcow
