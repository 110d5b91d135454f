// The worked example of docs/format.md: builds its bytes, and compares the hex dump in the document
// with them. Then the engine reads the image as the document says. With PCOW_REWRITE_EXAMPLE=1 it
// rewrites the dump in the document.
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "check.h"
#include "engine/format/entry.h"
#include "engine/format/layer_directory.h"

using namespace pcow;

namespace {

constexpr uint64_t kBlock = 8192;
constexpr uint64_t kImage = 65536;
const char kStart[] = "PCOW_REWRITE_EXAMPLE=1 writes it anew -->\n\n```text\n";
const char kEnd[] = "```\n";

void put_text(std::vector<uint8_t>* bytes, uint64_t offset, const std::string& text) {
  memcpy(bytes->data() + offset, text.data(), text.size());
}

std::vector<uint8_t> build(bool clean) {
  std::vector<uint8_t> bytes(7 * kBlock);
  Superblock superblock;
  for (size_t i = 0; i < superblock.uuid.size(); i++)
    superblock.uuid[i] = static_cast<uint8_t>(0x10 + i);
  superblock.uuid[6] = 0x46;
  superblock.uuid[8] = 0x98;
  for (size_t i = 0; i < superblock.boot.size(); i++)
    superblock.boot[i] = static_cast<uint8_t>(0xb0 + i);
  superblock.block_shift = 13;
  superblock.clean = clean;
  superblock.directory_offset = 1 * kBlock;
  superblock.cache = {0x801, 1234, 0x80000021, 18262};
  superblock.opener.pid = 4242;
  superblock.opener.start_time = 123456;
  superblock.opener.command = "pcow";

  LayerDirectory directory;
  directory.next_id = 3;
  directory.active = 2;
  Layer first;
  first.id = 1;
  first.time_ns = 1'735'689'600'000'000'000;  // 2025-01-01
  first.size = kImage;
  first.table_offset = 2 * kBlock;
  first.table_length = kBlock;
  first.name = "first";
  Layer active = first;
  active.id = 2;
  active.parent = 1;
  active.table_offset = 3 * kBlock;
  active.name.clear();
  directory.layers = {first, active};
  const auto encoded = directory.encode(superblock.uuid);
  memcpy(bytes.data() + superblock.directory_offset, encoded.data(), encoded.size());
  superblock.directory_length = encoded.size();

  // The snapshot was committed with generation 6, and sealed with generation 7.
  for (uint64_t generation = 6; generation <= 7; generation++) {
    superblock.generation = generation;
    superblock.sealed = generation - 6;
    const auto slot = superblock.encode();
    memcpy(bytes.data() + (generation & 1) * kPageSize, slot.data(), slot.size());
  }
  const auto put_entry = [&](const Layer& layer, uint64_t block, const Entry& entry) {
    const uint64_t word = entry.pack();
    memcpy(bytes.data() + layer.table_offset + block * 8, &word, sizeof word);
  };
  put_entry(first, 0, {4, 3, 3});
  put_entry(first, 1, {5, 1, 1});
  put_entry(active, 0, {6, 2, 0});
  put_entry(active, 1, {0, 1, 1});
  put_text(&bytes, 4 * kBlock, "first, sub-block 0");
  put_text(&bytes, 4 * kBlock + 4096, "first, sub-block 1");
  put_text(&bytes, 5 * kBlock, "first, block 1");
  put_text(&bytes, 6 * kBlock + 4096, "second, sub-block 1");
  return bytes;
}

// As hexdump -Cv shows it, without lines that contain only zeros.
std::string dump(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (size_t line = 0; line < bytes.size(); line += 16) {
    std::string letters;
    char field[32];
    bool empty = true;
    snprintf(field, sizeof field, "%08zx ", line);
    std::string shown = field;
    for (size_t i = 0; i < 16; i++) {
      const uint8_t byte = bytes[line + i];
      empty = empty && byte == 0;
      snprintf(field, sizeof field, "%s%02x", i == 8 ? "  " : " ", byte);
      shown += field;
      letters += byte >= 0x20 && byte < 0x7f ? static_cast<char>(byte) : '.';
    }
    if (!empty) text += shown + "  |" + letters + "|\n";
  }
  return text;
}

void compare_with_document(const std::string& path, const std::string& expected) {
  std::ifstream in(path);
  std::stringstream content;
  content << in.rdbuf();
  std::string document = content.str();
  const size_t marker = document.find(kStart);
  CHECK(marker != std::string::npos);
  const size_t start = marker + strlen(kStart);
  const size_t end = document.find(kEnd, start);
  CHECK(end != std::string::npos);
  if (getenv("PCOW_REWRITE_EXAMPLE")) {
    document.replace(start, end - start, expected);
    std::ofstream(path) << document;
    return;
  }
  if (document.substr(start, end - start) == expected) return;
  fprintf(stderr,
          "%s: the example is not what the engine writes; PCOW_REWRITE_EXAMPLE=1 mends it:\n%s",
          path.c_str(), expected.c_str());
  exit(1);
}

void check_text(const Image& image, const View* view, uint64_t offset,
                const std::string& expected) {
  std::string found(4096, 'x');
  CHECK(MUST(image.read(view, offset, found.data(), found.size())) == found.size());
  CHECK(found == expected + std::string(4096 - expected.size(), '\0'));
}

void read_with_engine(bool clean) {
  TemporaryDirectory directory;
  const std::string path = directory / "example.pcow";
  const auto bytes = build(clean);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), ssize_t(bytes.size()));
  for (const bool write : {false, true}) {
    OpenOptions options;
    options.write = write;
    auto image = MUST(Image::open(path, options));
    CHECK(image->size() == kImage);
    const auto first = MUST(image->view("first"));
    check_text(*image, nullptr, 0, "first, sub-block 0");
    check_text(*image, nullptr, 0x1000, clean ? "second, sub-block 1" : "first, sub-block 1");
    check_text(*image, nullptr, 0x2000, "");
    check_text(*image, first.get(), 0, "first, sub-block 0");
    check_text(*image, first.get(), 0x1000, "first, sub-block 1");
    check_text(*image, first.get(), 0x2000, "first, block 1");
    CHECK(MUST(image->snapshots(false)).size() == 1);
    MUST(image->close());
  }
}

}  // namespace

int main(int argc, char** argv) {
  compare_with_document(argc > 1 ? argv[1] : "../../docs/format.md", dump(build(false)));
  read_with_engine(false);
  read_with_engine(true);
  return 0;
}
