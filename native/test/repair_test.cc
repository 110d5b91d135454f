// Repairs of damage that costs data: a lost layer directory, and files that were cut short.
// Everything that is left is there again, and the report says what is lost, or may be.
#include <unistd.h>

#include <cstring>

#include "check_sample.h"
#include "engine/format/superblock.h"

using namespace pcow;
using namespace check_sample;

namespace {

// The layer directory of the newest slot is damaged, and that of the other slot still exists.
void older_directory() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  Bytes bytes = good.bytes;
  const uint64_t end = round_up<uint64_t>(bytes.size(), kBlock);
  bytes.resize(end + kBlock);
  Superblock next = good.superblock;
  next.generation++;
  next.directory_offset = end;
  memset(bytes.data() + end, 0x77, good.superblock.directory_length);
  memcpy(bytes.data() + (next.generation & 1) * kPageSize, next.encode().data(), kPageSize);
  save(path, bytes);
  const CheckReport found = check(path);
  if (!has(found, "directory", end, "no magic number"))
    fail("a damaged directory is not found", found);
  const CheckReport mended = check(path, true);
  if (mended.damages || mended.generation <= next.generation)
    fail("the older directory is not used", mended);
  CHECK(contents_of(path) == good.contents);
  // What the newest one contained in addition is unknown.
  CHECK(mended.older_directory && loss_of(mended, "")->doubtful == good.contents.at("").size());
  // The damaged bytes are kept.
  CHECK(load(mended.lost_path)[0] == 0x77);
}

// A file that was cut short: what was behind the cut is lost, and the rest can be read again.
void cut_short() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  // The active layer's table is moved to the end of the file, and cut off there.
  LayerDirectory moved = good.directory;
  Layer* layer = moved.find(moved.active);
  const uint64_t last_table = round_up<uint64_t>(good.bytes.size(), kBlock);
  Bytes bytes = good.bytes;
  bytes.resize(last_table);
  memset(bytes.data() + layer->table_offset, 0, layer->table_length);
  layer->table_offset = last_table;
  const Bytes encoded = moved.encode(good.superblock.uuid);
  memcpy(bytes.data() + good.superblock.directory_offset, encoded.data(), encoded.size());
  save(path, bytes);
  OpenOptions options;
  FAILS(Image::open(path, options), Code::kCorrupt);
  const CheckReport found = check(path);
  if (!has(found, "table", last_table, "beyond the end of the file"))
    fail("a cut is not found", found);
  const CheckReport mended = check(path, true);
  if (mended.damages) fail("a cut is not mended", mended);
  const Contents now = contents_of(path);
  CHECK(now.at("one") == good.contents.at("one") && now.at("two") == good.contents.at("two"));
  // The active layer has lost its content, but the blocks are kept, because nothing names them.
  CHECK(load(mended.lost_path)[0] == '3');
  CHECK(mended.unplaced == 2);
  const Loss* lost = loss_of(mended, "");
  CHECK(lost && lost->doubtful == now.at("").size() && mended.losses.size() == 1);
}

// Blocks of snapshots were cut off: the losses of each view are reported, except for data that a
// nearer layer holds.
void cut_data() {
  TemporaryDirectory directory;
  const Sample good = make_sample(directory);
  const std::string path = directory / "image.pcow";
  // A block of "two" is moved to the end of the file.
  const uint64_t place = good.entry_place("two", 9);
  const Entry entry = Entry::unpack(word_at(good.bytes, place));
  CHECK(entry.index);
  Bytes bytes = good.bytes;
  const uint64_t last = round_up<uint64_t>(bytes.size(), kBlock);
  bytes.resize(last + kBlock);
  memcpy(bytes.data() + last, bytes.data() + entry.index * uint64_t{kBlock}, kBlock);
  memset(bytes.data() + entry.index * uint64_t{kBlock}, 0, kBlock);
  put_field(bytes.data(), place,
            Entry{static_cast<uint32_t>(last / kBlock), entry.written, entry.durable}.pack());
  save(path, bytes);
  CHECK(contents_of(path) == good.contents);
  CHECK(check(path).findings.empty());
  // One sub-block of it is written again.
  auto image = open_image(path, true);
  put(image.get(), 9 * kBlock + 4096, 4096, '4');
  MUST(image->close());
  const Contents before = contents_of(path);
  CHECK(Entry::unpack(word_at(load(path), good.entry_place("", 9))).index != last / kBlock);
  bytes = load(path);
  // The old block is cut off, and everything behind it.
  CHECK(truncate(path.c_str(), static_cast<off_t>(last)) == 0);
  const CheckReport mended = check(path, true);
  CHECK(!mended.damages);
  const Contents now = contents_of(path);
  all_losses_are_told("a cut", mended, before, now);
  const Loss* frozen = loss_of(mended, "two");
  CHECK(frozen && frozen->gone == kBlock && frozen->ranges.size() == 1 &&
        frozen->ranges[0].offset == 9 * kBlock);
  CHECK(!loss_of(mended, "one"));
  CHECK(now.at("one") == before.at("one"));
}
}  // namespace

int main() {
  older_directory();
  cut_short();
  cut_data();
  return 0;
}
