// The second reader (test/format/reader.py): a program that knows nothing but docs/format.md. It
// runs beside a test, and reads the images that the test makes.
#pragma once

#include <cstdio>
#include <map>
#include <string>

#include "check.h"

class SecondReader {
 public:
  SecondReader();
  ~SecondReader();
  SecondReader(const SecondReader&) = delete;
  SecondReader& operator=(const SecondReader&) = delete;

  // The content of the image: the active layer under "", the snapshots under their names. Ends the
  // program if the reader finds the image damaged.
  std::map<std::string, Bytes> read(const std::string& path);
  // Ends the program unless the image holds exactly this.
  void compare(const std::string& path, const Bytes& active,
               const std::map<std::string, Bytes>& snapshots);

 private:
  pid_t process_;
  FILE* to_;
  FILE* from_;
};
