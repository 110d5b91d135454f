#include "addon/run_exports.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <vector>

#include "addon/arguments.h"
#include "addon/errors.h"
#include "attach/fault_descriptor.h"

namespace pcow::addon {

namespace {

// The monitor's threads borrow descriptors of their process. A filter of system calls may forbid
// that (of a container, or a unit's SystemCallFilter). No descriptor has the number -1: EBADF means
// that the call is allowed.
Result<void> check_borrowing() {
  const int process = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
  if (process >= 0) syscall(SYS_pidfd_getfd, process, -1, 0);
  const int err = errno;
  if (process >= 0) ::close(process);
  if (process >= 0 && err == EBADF) return {};
  return system_error(
      err,
      "the monitor could not borrow descriptors of its process: its filter of system calls (for "
      "example, "
      "of a container) must allow pidfd_open and pidfd_getfd (Linux 5.6 or newer is needed)");
}

// Returns whether the kernel can write-protect shared memory. Throws the error that the monitor
// would fail with.
Napi::Value check_monitor(const Napi::CallbackInfo& info) {
  auto faults = FaultDescriptor::open();
  if (!faults) return throw_in_js(info.Env(), faults.error());
  if (auto borrowed = check_borrowing(); !borrowed)
    return throw_in_js(info.Env(), borrowed.error());
  return Napi::Boolean::New(info.Env(), (*faults)->can_share());
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// `words` (the command first), `environment` ("NAME=value"). Returns only if the command cannot be
// run: then it throws.
Napi::Value become(const Napi::CallbackInfo& info) {
  std::vector<std::string> words = texts_of(info[0]);
  std::vector<std::string> environment = texts_of(info[1]);
  // Undo what Node has changed for itself and exec(2) would keep.
  for (const int number : {SIGPIPE, SIGXFSZ}) ::signal(number, SIG_DFL);
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    const int flags = ::fcntl(standard, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK)) ::fcntl(standard, F_SETFL, flags & ~O_NONBLOCK);
    ::fcntl(standard, F_SETFD, 0);
  }
  ::execvpe(words.front().c_str(), pointers_to(words).data(), pointers_to(environment).data());
  return throw_in_js(info.Env(), system_error(errno, "can't run " + words.front()));
}

}  // namespace

void export_run(Napi::Env env, Napi::Object exports) {
  exports.Set("checkMonitor", Napi::Function::New<check_monitor>(env, "checkMonitor"));
  exports.Set("become", Napi::Function::New<become>(env, "become"));
}

}  // namespace pcow::addon
