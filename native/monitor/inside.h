// Whether this thread belongs to the monitor. The engine and the C++ library call the functions
// that hooks.cc interposes. On the monitor's threads these calls go straight to the kernel;
// otherwise a thread of the monitor would wait for itself.
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
  // The loader allocates it before any code runs. Other TLS models may call malloc(3) at the first
  // access, which may happen inside malloc.
  __attribute__((tls_model("initial-exec"))) static inline thread_local int depth_ = 0;
};

}  // namespace pcow
