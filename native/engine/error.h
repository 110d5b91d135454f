// Errors are values in the engine: every failure has a code, an errno and a sentence. The engine
// throws no exceptions.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace pcow {

// Stable codes: the addon hands them to JavaScript as "PCOW_" names (code_name), so they are never
// renamed.
enum class Code {
  kInvalid,
  kExists,
  kNotFound,
  kLocked,
  kBusy,
  kInUse,
  kNotAnImage,
  kUnsupported,
  kCorrupt,
  kIo,
  kNoSpace,
  kReadOnly,
  kPermission,
  kTooLarge,
  kLimit,
  kBaseMissing,
  kBaseChanged,
  kBaseLoop,
  kBaseOutside,
  kCancelled,
  kClosed,
  kNoMemory,
  kRemote,
};

// "PCOW_LOCKED" for Code::kLocked, and so on.
const char* code_name(Code code);

// The errno that a system call would give for this code (positive).
int code_errno(Code code);

// What a reader lacks: a block of which sub-blocks are remote (docs/format.md, "Source").
struct RemoteBlock {
  std::string path;  // of the file whose layer holds it
  std::string uuid;  // of that image: 8-4-4-4-12 hex digits
  uint64_t layer;    // id
  uint64_t block;    // number
};

struct Error {
  Code code;
  int err;              // positive errno
  std::string message;  // one sentence that names the image, without a full stop
  std::shared_ptr<const RemoteBlock> remote;  // of kRemote, if a single block is known

  Error(Code c, std::string text) : code(c), err(code_errno(c)), message(std::move(text)) {}
  Error(Code c, int e, std::string text) : code(c), err(e), message(std::move(text)) {}
};

// An Error for a failed system call. `what` says what was tried, on which file; the text of the
// errno is added, and the code follows from it (ENOSPC and EDQUOT become kNoSpace, EACCES and EPERM
// kPermission, …).
Error system_error(int err, const std::string& what);

// The same for a call that reads or writes a file. If the usual text of the errno would mislead,
// the meaning that the disk or the filesystem gives to it is put before that text.
Error disk_error(int err, const std::string& what);

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& operator*() { return std::get<0>(state_); }
  const T& operator*() const { return std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  Error& error() { return std::get<1>(state_); }
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  Error& error() { return *error_; }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

// Returns early with the error of a Result<void> expression.
#define PCOW_TRY(expression)                                        \
  do {                                                              \
    if (auto tried_ = (expression); !tried_) return tried_.error(); \
  } while (false)

}  // namespace pcow
