#include "engine/format/table.h"

#include <algorithm>
#include <cstring>

#include "engine/rules.h"

namespace pcow {
namespace {

constexpr uint64_t chunks_of(uint64_t entries) {
  return (entries + kBlocksPerChunk - 1) / kBlocksPerChunk;
}

}  // namespace

Result<std::vector<ChunkRange>> present_chunks(const File& file, uint64_t table_offset,
                                               uint64_t entries) {
  std::vector<ChunkRange> ranges;
  const uint64_t end = table_offset + chunks_of(entries) * kPageSize;
  for (uint64_t at = table_offset; at < end;) {
    auto data = file.next_data(at, end);
    if (!data) return data.error();
    if (*data == end) break;
    auto hole = file.next_hole(*data, end);
    if (!hole) return hole.error();
    // The filesystem's unit may be larger or smaller than a page: round outwards.
    const uint64_t first = (*data - table_offset) / kPageSize;
    const uint64_t last = (*hole - table_offset + kPageSize - 1) / kPageSize;
    if (!ranges.empty() && ranges.back().end >= first) {
      ranges.back().end = last;
    } else {
      ranges.push_back({first, last});
    }
    at = *hole;
  }
  return ranges;
}

bool contains(const std::vector<ChunkRange>& ranges, uint64_t chunk) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), chunk,
                       [](uint64_t c, const ChunkRange& range) { return c < range.first; });
  return after != ranges.begin() && chunk < std::prev(after)->end;
}

Result<void> read_entry_page(const File& file, uint64_t table_offset, uint64_t entries,
                             uint64_t chunk, EntryPage* page) {
  return read_entry_pages(file, table_offset, entries, chunk, 1, page);
}

Result<void> read_entry_pages(const File& file, uint64_t table_offset, uint64_t entries,
                              uint64_t first, uint64_t count, EntryPage* pages) {
  const uint64_t wanted = std::min(count * kBlocksPerChunk, entries - first * kBlocksPerChunk) * 8;
  auto length = file.read(table_offset + first * kPageSize, pages->data(), wanted);
  if (!length) return length.error();
  if (*length != wanted) return Error(Code::kCorrupt, file.path() + ": a layer's table is cut off");
  memset(reinterpret_cast<char*>(pages->data()) + wanted, 0, count * kPageSize - wanted);
  return {};
}

Result<std::shared_ptr<Table>> Table::map(std::shared_ptr<File> file, uint64_t offset,
                                          uint64_t entries, bool write) {
  auto mapping = file->map(offset, chunks_of(entries) * kPageSize, write);
  if (!mapping) return mapping.error();
  std::shared_ptr<Table> table(
      new Table(std::move(file), std::move(*mapping), offset, entries, write));
  auto present = present_chunks(*table->file_, offset, entries);
  if (!present) return present.error();
  for (const auto& [first, end] : *present)
    for (uint64_t chunk = first; chunk < end; chunk++) table->present_.set(chunk);
  return table;
}

std::vector<ChunkRange> Table::present() const {
  std::vector<ChunkRange> ranges;
  for (uint64_t chunk = 0; chunk < chunks(); chunk++) {
    if (!present_.get(chunk)) continue;
    if (!ranges.empty() && ranges.back().end == chunk) {
      ranges.back().end++;
    } else {
      ranges.push_back({chunk, chunk + 1});
    }
  }
  return ranges;
}

void Table::store_run(uint64_t block, uint64_t count, Entry first) {
  uint64_t* const words = &mapping_->words()[block];
  const uint64_t offset = offset_ + block * 8;
  for (uint64_t i = 0; i < count; i++, first.index++)
    file_->store_unfenced(words + i, offset + i * 8, first.pack());
  if (file_->is_persistent()) file_->persist(words, offset, count * 8);
}

Result<void> Table::ensure(uint64_t chunk) {
  if (ensured_.get(chunk)) return {};
  if (keeps(Rule::kTableSpaceBeforeStore))
    PCOW_TRY(file_->allocate(offset_ + chunk * kPageSize, kPageSize));
  present_.set(chunk);
  ensured_.set(chunk);
  return {};
}

}  // namespace pcow
