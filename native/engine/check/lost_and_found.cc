#include "engine/check/lost_and_found.h"

#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string_view>
#include <vector>

#include "engine/image/names.h"

namespace pcow {
namespace {

constexpr std::string_view kAt = "{\"at\":";

// The argument is a valid name (check_snapshot_name): it has no control characters, and is UTF-8.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace

// The file gets the permissions of the image, because it contains bytes of the image.
Result<std::shared_ptr<File>> LostAndFound::open(const std::string& path, uint64_t* size) const {
  auto file = File::open(path, true, nullptr);
  if (!file && file.error().code == Code::kNotFound) {
    file = File::create(path, nullptr);
    struct stat image;
    if (file && stat(image_.c_str(), &image) == 0)
      fchmod((*file)->descriptor(), image.st_mode & 0666);
  }
  if (!file) return file;
  auto found = (*file)->size();
  if (!found) return found.error();
  *size = *found;
  return file;
}

Result<void> LostAndFound::open_both() {
  auto index = open(image_ + ".lost.index", &index_size_);
  if (!index) return index.error();
  auto file = open(image_ + ".lost", &bytes_size_);
  if (!file) return file.error();
  std::string text(index_size_, '\0');
  auto count = (*index)->read(0, text.data(), text.size());
  if (!count) return count.error();
  if (!text.empty() && text.back() != '\n') PCOW_TRY((*index)->write(index_size_++, "\n", 1));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t rest = line.find(',');
    if (line.starts_with(kAt) && rest != line.npos)
      kept_.emplace(line.substr(rest), strtoull(line.c_str() + kAt.size(), nullptr, 10));
  }
  index_ = std::move(*index);
  bytes_ = std::move(*file);
  return {};
}

Result<bool> LostAndFound::is_kept(const std::string& rest, const char* bytes,
                                   size_t length) const {
  std::vector<char> there(length);
  for (auto [kept, end] = kept_.equal_range(rest); kept != end; ++kept) {
    auto count = bytes_->read(kept->second, there.data(), length);
    if (!count) return count.error();
    if (*count == length && memcmp(there.data(), bytes, length) == 0) return true;
  }
  return false;
}

Result<void> LostAndFound::keep(const LostPiece& piece, const char* bytes, size_t length) {
  if (!bytes_) PCOW_TRY(open_both());
  std::string rest =
      ",\"length\":" + std::to_string(length) + ",\"place\":" + std::to_string(piece.file_offset);
  if (piece.layer) {
    rest += ",\"layer\":" + std::to_string(piece.layer) +
            ",\"snapshot\":" + quoted(piece.snapshot) +
            ",\"offset\":" + std::to_string(piece.offset);
  }
  rest += ",\"why\":" + quoted(piece.why) + "}";
  auto kept = is_kept(rest, bytes, length);
  if (!kept) return kept.error();
  if (*kept) return {};
  PCOW_TRY(bytes_->write(bytes_size_, bytes, length));
  const std::string line = std::string(kAt) + std::to_string(bytes_size_) + rest + "\n";
  PCOW_TRY(index_->write(index_size_, line.data(), line.size()));
  bytes_size_ += length;
  index_size_ += line.size();
  return {};
}

Result<void> LostAndFound::sync() {
  if (!bytes_) return {};
  PCOW_TRY(bytes_->sync());
  PCOW_TRY(index_->sync());
  // Makes the names durable, too: otherwise a power cut could lose what the repair is about to take
  // out of the image.
  return sync_directory_of(bytes_->path());
}

}  // namespace pcow
