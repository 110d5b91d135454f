#include "check_sample.h"

#include <cstdio>

namespace check_sample {

using namespace pcow;

std::unique_ptr<Image> open_image(const std::string& path, bool write) {
  OpenOptions options;
  options.write = write;
  return MUST(Image::open(path, options));
}

void put(Image* image, uint64_t offset, size_t length, char value) {
  const std::vector<char> bytes(length, value);
  MUST(image->write(offset, bytes.data(), length));
}

Contents contents_of(const std::string& path) {
  auto image = open_image(path);
  Contents contents;
  contents[""].resize(image->size());
  CHECK(MUST(image->read(nullptr, 0, contents[""].data(), image->size())) == image->size());
  for (const SnapshotInfo& info : MUST(image->snapshots(false))) {
    const auto view = MUST(image->view(info.name));
    auto& bytes = contents[info.name];
    bytes.resize(image->view_size(*view));
    CHECK(MUST(image->read(view.get(), 0, bytes.data(), bytes.size())) == bytes.size());
  }
  return contents;
}

namespace {

Sample sample_of(const std::string& path) {
  Sample sample;
  sample.bytes = load(path);
  sample.contents = contents_of(path);
  const uint8_t* bytes = sample.bytes.data();
  const auto first = MUST(Superblock::decode(bytes, path));
  const auto second = MUST(Superblock::decode(bytes + kPageSize, path));
  sample.superblock = first.generation > second.generation ? first : second;
  const auto* start = bytes + sample.superblock.directory_offset;
  sample.directory =
      MUST(LayerDirectory::decode(Bytes(start, start + sample.superblock.directory_length),
                                  sample.superblock, sample.bytes.size(), path));
  return sample;
}

}  // namespace

Sample make_sample(const TemporaryDirectory& directory) {
  const std::string base = directory / "base.pcow";
  CreateOptions options;
  options.size = kImage;
  options.block_size = kBlock;
  MUST(create_image(base, options));
  auto image = open_image(base, true);
  put(image.get(), 0, 6 * kBlock, 'b');
  MUST(image->snapshot("ground"));
  MUST(image->close());
  options = {};
  options.has_base = true;
  options.base.path = base;
  options.base.snapshot = "ground";
  const std::string path = directory / "image.pcow";
  MUST(create_image(path, options));
  image = open_image(path, true);
  put(image.get(), 0, 2 * kBlock, '1');
  put(image.get(), 3 * kBlock + 4096, 8192, '1');
  MUST(image->snapshot("one"));
  put(image.get(), kBlock, 4096, '2');
  put(image.get(), 9 * kBlock, 2 * kBlock, '2');
  MUST(image->discard(2 * kBlock, kBlock));
  MUST(image->snapshot("two"));
  put(image.get(), 5 * kBlock, kBlock, '3');
  put(image.get(), 12 * kBlock, 4096, '3');
  MUST(image->close());
  return sample_of(path);
}

CheckReport check(const std::string& path, bool repair) {
  CheckOptions options;
  options.repair = repair;
  return MUST(check_image(path, options, nullptr));
}

void fail(const std::string& what, const CheckReport& report) {
  fprintf(stderr, "%s; the check says:\n", what.c_str());
  for (const Finding& finding : report.findings)
    fprintf(stderr, "  %d %s at %llu: %s%s\n", static_cast<int>(finding.severity),
            finding.structure.c_str(), static_cast<unsigned long long>(finding.file_offset),
            finding.message.c_str(), finding.repaired ? " (repaired)" : "");
  exit(1);
}

bool has(const CheckReport& report, const std::string& structure, uint64_t place,
         const std::string& words) {
  for (const Finding& finding : report.findings)
    if (finding.structure == structure && finding.file_offset == place &&
        finding.message.find(words) != std::string::npos)
      return true;
  return false;
}

void all_losses_are_told(const std::string& what, const CheckReport& mended, const Contents& before,
                         const Contents& now) {
  if (mended.unplaced) return;
  for (const auto& [name, bytes] : before) {
    std::vector<bool> told(bytes.size());
    uint64_t total = 0;
    for (const Loss& loss : mended.losses) {
      uint64_t end = 0;
      for (const LostRange& range : loss.ranges) {
        if (range.offset < end || !range.length) fail(what + ": lost ranges overlap", mended);
        end = range.offset + range.length;
        total += range.length;
        if (loss.snapshot != name) continue;
        if (end > bytes.size())
          fail(what + ": a lost range behind the end of \"" + name + "\"", mended);
        std::fill_n(told.begin() + static_cast<ptrdiff_t>(range.offset), range.length, true);
      }
      total -= loss.gone + loss.doubtful;
    }
    if (total) fail(what + ": the sums of what is lost are wrong", mended);
    const std::vector<char>& left = now.at(name);
    if (left == bytes) continue;
    for (size_t i = 0; i < bytes.size(); i++)
      if (bytes[i] != left[i] && !told[i])
        fail(what + ": byte " + std::to_string(i) + " of \"" + name + "\" is lost, and not told",
             mended);
  }
}

const Loss* loss_of(const CheckReport& report, const std::string& snapshot) {
  for (const Loss& loss : report.losses)
    if (loss.snapshot == snapshot) return &loss;
  return nullptr;
}

}  // namespace check_sample
