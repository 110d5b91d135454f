#include "lost_and_found.h"

#include <sys/stat.h>

namespace pcow {
namespace {

// Names hold no control characters, and are UTF-8 (check_snapshot_name).
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace

// With the rights of the image: its bytes are in it.
Result<std::shared_ptr<File>> LostAndFound::open(const std::string& path, uint64_t* size) const {
  auto file = File::open(path, true, nullptr);
  if (!file && file.error().code == Code::kNotFound) {
    file = File::create(path, nullptr);
    struct stat image;
    if (file && stat(image_.c_str(), &image) == 0) fchmod((*file)->descriptor(), image.st_mode & 0666);
  }
  if (!file) return file;
  auto found = (*file)->size();
  if (!found) return found.error();
  *size = *found;
  return file;
}

Result<void> LostAndFound::keep(const LostPiece& piece, const char* bytes, size_t length) {
  if (!bytes_) {
    auto index = open(image_ + ".lost.index", &index_size_);
    if (!index) return index.error();
    auto file = open(image_ + ".lost", &bytes_size_);
    if (!file) return file.error();
    index_ = std::move(*index);
    bytes_ = std::move(*file);
  }
  PCOW_TRY(bytes_->write(bytes_size_, bytes, length));
  std::string line = "{\"at\":" + std::to_string(bytes_size_) + ",\"length\":" + std::to_string(length) +
                     ",\"place\":" + std::to_string(piece.place);
  if (piece.layer) {
    line += ",\"layer\":" + std::to_string(piece.layer) + ",\"snapshot\":" + quoted(piece.snapshot) +
            ",\"offset\":" + std::to_string(piece.offset);
  }
  line += ",\"why\":" + quoted(piece.why) + "}\n";
  PCOW_TRY(index_->write(index_size_, line.data(), line.size()));
  bytes_size_ += length;
  index_size_ += line.size();
  return {};
}

Result<void> LostAndFound::sync() {
  if (!bytes_) return {};
  PCOW_TRY(bytes_->sync());
  return index_->sync();
}

}  // namespace pcow
