// Where a repair keeps what it cannot place: IMAGE.lost contains the bytes, IMAGE.lost.index one
// line of JSON for each piece. Both files only grow. If a repair did not finish, the next one
// starts again, and does not keep a piece twice.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/disk/file.h"

namespace pcow {

struct LostPiece {
  std::string why;           // a sentence
  uint64_t file_offset = 0;  // where it was in the image file, bytes
  uint64_t layer = 0;        // id of the layer that named it; 0: none
  std::string snapshot;      // that layer's name
  uint64_t offset = 0;       // where it belongs in the flat file, bytes
};

class LostAndFound {
 public:
  explicit LostAndFound(std::string image) : image_(std::move(image)) {}

  Result<void> keep(const LostPiece& piece, const char* bytes, size_t length);
  // Makes everything that was kept so far durable.
  Result<void> sync();
  // The path of the file with the bytes; empty if nothing was kept.
  std::string path() const { return bytes_ ? bytes_->path() : ""; }

 private:
  Result<std::shared_ptr<File>> open(const std::string& path, uint64_t* size) const;
  Result<void> open_both();
  Result<bool> is_kept(const std::string& rest, const char* bytes, size_t length) const;

  const std::string image_;
  std::shared_ptr<File> bytes_;
  std::shared_ptr<File> index_;
  std::multimap<std::string, uint64_t> kept_;  // lines without "at", and the value of "at"
  uint64_t bytes_size_ = 0;
  uint64_t index_size_ = 0;
};

}  // namespace pcow
