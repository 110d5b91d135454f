// Shared by the native tests: checks that end the program with a sentence, files, temporary
// directories, seeded random numbers.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "engine/image/image.h"

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                \
    }                                                                         \
  } while (false)

// The value of a Result; if there is none, ends the program with the error.
template <typename T>
T must_(pcow::Result<T> result, const char* file, int line) {
  if (!result) {
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, pcow::code_name(result.error().code),
            result.error().message.c_str());
    exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
#define MUST(expression) must_((expression), __FILE__, __LINE__)

#define FAILS(expression, expected)                                                    \
  do {                                                                                 \
    auto result_ = (expression);                                                       \
    CHECK(!result_);                                                                   \
    if (result_.error().code != (expected)) {                                          \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__,                           \
              pcow::code_name(result_.error().code), result_.error().message.c_str()); \
      exit(1);                                                                         \
    }                                                                                  \
  } while (false)

// The content of a file.
using Bytes = std::vector<uint8_t>;

// Images are mostly holes, so only the data is read, and only what is not zero is written.
inline Bytes load(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status = {};
  CHECK(descriptor >= 0 && fstat(descriptor, &status) == 0);
  Bytes bytes(static_cast<size_t>(status.st_size));
  off_t at = 0;
  while ((at = lseek(descriptor, at, SEEK_DATA)) >= 0) {
    const off_t end = lseek(descriptor, at, SEEK_HOLE);
    for (ssize_t got = 1; at < end && got; at += got) {
      got = pread(descriptor, bytes.data() + at, static_cast<size_t>(end - at), at);
      CHECK(got >= 0);
    }
  }
  CHECK(errno == ENXIO && close(descriptor) == 0);
  return bytes;
}

inline void save(const std::string& path, const Bytes& bytes) {
  constexpr size_t kPiece = 4096;
  static const uint8_t zeros[kPiece] = {};
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  CHECK(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(bytes.size())) == 0);
  for (size_t at = 0; at < bytes.size(); at += kPiece) {
    const size_t length = std::min(kPiece, bytes.size() - at);
    if (memcmp(bytes.data() + at, zeros, length) == 0) continue;
    CHECK(pwrite(descriptor, bytes.data() + at, length, static_cast<off_t>(at)) ==
          static_cast<ssize_t>(length));
  }
  CHECK(close(descriptor) == 0);
}

class TemporaryDirectory {
 public:
  // By default on a real disk, because /tmp may be in memory.
  explicit TemporaryDirectory(const std::string& parent = "/var/tmp")
      : path_(parent + "/pcow-test-XXXXXX") {
    if (!mkdtemp(path_.data())) {
      perror(path_.c_str());
      exit(1);
    }
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// How often to repeat what can be repeated any number of times: `plain` without a sanitizer. Under
// one, which makes programs many times slower: `at_length` with PCOW_LONG=1 (npm run test:long),
// otherwise `in_short` (npm test).
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline int effort(int /*plain*/, int at_length, int in_short) {
  return getenv("PCOW_LONG") ? at_length : in_short;
}
#else
inline int effort(int plain, int /*at_length*/, int /*in_short*/) { return plain; }
#endif

// Of the places that a test goes through one by one, every n-th is tried, beginning with a random
// one of the first n.
inline int every() { return effort(1, 6, 18); }

// Chooses among `count` things: every n-th, at random, and at least one.
class Turns {
 public:
  Turns(std::mt19937_64* random, uint64_t count) : random_(random), chosen_((*random)() % count) {}
  bool next() {
    const bool by_chance = (*random_)() % static_cast<uint64_t>(every()) == 0;
    return number_++ == chosen_ || by_chance;
  }

 private:
  std::mt19937_64* random_;
  uint64_t chosen_;
  uint64_t number_ = 0;
};

// The thread sanitizer finds nothing in parts of a test that have one thread, and makes them twenty
// times slower.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadsOnly = true;
#else
inline constexpr bool kThreadsOnly = false;
#endif

// PCOW_SEED=… repeats a run.
inline uint64_t test_seed() {
  const char* given = getenv("PCOW_SEED");
  const uint64_t seed = given ? strtoull(given, nullptr, 10) : std::random_device{}();
  printf("PCOW_SEED=%llu\n", static_cast<unsigned long long>(seed));
  fflush(stdout);
  return seed;
}
