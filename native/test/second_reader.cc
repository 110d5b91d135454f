#include "second_reader.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace {

// Relative to the directory in which the tests run (scripts/native-tests).
constexpr const char* kProgram = "../../test/format/reader.py";

}  // namespace

SecondReader::SecondReader() {
  CHECK(access(kProgram, R_OK) == 0);
  int input[2];
  int output[2];
  CHECK(pipe2(input, O_CLOEXEC) == 0 && pipe2(output, O_CLOEXEC) == 0);
  process_ = fork();
  CHECK(process_ >= 0);
  if (process_ == 0) {
    dup2(input[0], STDIN_FILENO);
    dup2(output[1], STDOUT_FILENO);
    execlp("python3", "python3", kProgram, nullptr);
    perror("python3");
    _exit(127);
  }
  close(input[0]);
  close(output[1]);
  to_ = fdopen(input[1], "w");
  from_ = fdopen(output[0], "r");
}

SecondReader::~SecondReader() {
  fclose(to_);  // its input ends, and so it ends, too
  fclose(from_);
  waitpid(process_, nullptr, 0);
}

std::map<std::string, Bytes> SecondReader::read(const std::string& path) {
  fprintf(to_, "%s\n", path.c_str());
  fflush(to_);
  std::map<std::string, Bytes> found;
  char line[4096];
  while (fgets(line, sizeof line, from_)) {
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, "end") == 0) return found;
    unsigned long long size = 0;
    int name_at = 0;
    if (sscanf(line, "layer %llu%n", &size, &name_at) != 1) {
      fprintf(stderr, "the second reader cannot read %s: %s\n", path.c_str(), line);
      exit(1);
    }
    Bytes bytes(size);
    CHECK(fread(bytes.data(), 1, size, from_) == size);
    CHECK(found.emplace(line + name_at + 1, std::move(bytes)).second);
  }
  fprintf(stderr, "the second reader has ended before it had read %s\n", path.c_str());
  exit(1);
}

void SecondReader::compare(const std::string& path, const Bytes& active,
                           const std::map<std::string, Bytes>& snapshots) {
  std::map<std::string, Bytes> expected = snapshots;
  expected[""] = active;
  const auto found = read(path);
  for (const auto& [name, bytes] : expected) {
    const auto at = found.find(name);
    if (at != found.end() && at->second == bytes) continue;
    const std::string what = name.empty() ? "the active layer" : "snapshot " + name;
    fprintf(stderr, "the second reader reads %s of %s otherwise: %s\n", what.c_str(), path.c_str(),
            at == found.end()                   ? "it is missing"
            : at->second.size() != bytes.size() ? "its size is wrong"
                                                : "its bytes differ");
    exit(1);
  }
  if (found.size() == expected.size()) return;
  fprintf(stderr, "the second reader finds a snapshot too many in %s\n", path.c_str());
  exit(1);
}
