// What a check looks at, from the outside in: the superblock slots, the layer directory, the tables
// with all their entries, the base, and free space. Damage is reported, and the inspection
// continues with everything that is still readable. One file, because each step uses the state of
// those before it (inspection.h).
#include "engine/check/inspection.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "engine/format/bytes.h"
#include "engine/format/checksums.h"
#include "engine/format/crc32c.h"
#include "engine/format/remote_source.h"
#include "engine/image/bases.h"
#include "engine/image/page_cache.h"

namespace pcow {
namespace {

std::string without_path(const std::string& message, const std::string& path) {
  const std::string prefix = path + ": ";
  return message.rfind(prefix, 0) == 0 ? message.substr(prefix.size()) : message;
}

bool is_zero(const uint8_t* bytes, size_t length) {
  return std::all_of(bytes, bytes + length, [](uint8_t byte) { return byte == 0; });
}

}  // namespace

Finding damage_in(const Layer& layer, const Geometry& geometry, const char* structure,
                  const std::string& message, uint64_t file_offset, uint64_t block,
                  uint64_t blocks) {
  Finding finding;
  finding.structure = structure;
  finding.message = message;
  finding.file_offset = file_offset;
  finding.layer = layer.id;
  finding.snapshot = layer.name;
  finding.offset = block << geometry.block_shift();
  finding.length =
      std::min(blocks << geometry.block_shift(), layer.size - std::min(layer.size, finding.offset));
  return finding;
}

void Inspection::add(Finding finding) {
  uint64_t before = 0;
  switch (finding.severity) {
    case Severity::kDamage: before = report.damages++; break;
    case Severity::kLeak: before = report.leaks++; break;
    case Severity::kNote: break;
  }
  if (before < kListedFindings) report.findings.push_back(std::move(finding));
}

void Inspection::damage(const char* structure, const std::string& message, uint64_t file_offset) {
  Finding finding;
  finding.structure = structure;
  finding.message = message;
  finding.file_offset = file_offset;
  add(std::move(finding));
}

void Inspection::damage(const char* structure, const std::string& message, uint64_t file_offset,
                        const Layer& layer, uint64_t block, uint64_t blocks) {
  add(damage_in(layer, *geometry_, structure, message, file_offset, block, blocks));
}

std::string Inspection::name_of(const Layer& layer) const {
  if (layer.id == directory->active) return "the active layer";
  return layer.name.empty() ? "hidden layer " + std::to_string(layer.id) : "snapshot " + layer.name;
}

// What a block of the structure contains, for messages.
std::string Inspection::owner_of(uint64_t block) const {
  const uint64_t file_offset = block << geometry_->block_shift();
  for (const Layer& layer : directory->layers) {
    if (file_offset - layer.table_offset < layer.table_length)
      return "the table of " + name_of(layer);
    if (layer.checksums &&
        file_offset - (uint64_t{layer.checksums} << geometry_->block_shift()) < layer.table_length)
      return "the checksums of " + name_of(layer);
  }
  if (superblock->is_lazy() && file_offset - superblock->source_offset < superblock->source_length)
    return "the source of its remote bytes";
  return file_offset < 2 * kPageSize ? "the superblocks" : "the layer directory";
}

Result<void> Inspection::look_at_superblocks() {
  std::array<uint8_t, 2 * kPageSize> slots{};
  auto length = file->read(0, slots.data(), slots.size());
  if (!length) return length.error();
  if (*length < slots.size()) {
    damage("file",
           "the file has only " + std::to_string(*length) +
               " bytes: it was cut short, or is not an image",
           *length);
    return {};
  }
  PCOW_TRY(check_supported(slots.data(), file->path()));
  std::optional<Superblock> found[2];
  bool given_up[2] = {};  // the older slot needs a feature that the newer one does not need
  Finding slot_findings[2];
  std::optional<Superblock> mended[2];
  for (uint64_t number = 0; number < 2; number++) {
    const uint8_t* page = slots.data() + number * kPageSize;
    auto decoded = Superblock::decode(page, file->path());
    Finding& finding = slot_findings[number];
    finding.structure = "superblock";
    finding.message = "superblock slot " + std::to_string(number);
    finding.file_offset = number * kPageSize;
    if (decoded) {
      found[number] = *decoded;
      if ((decoded->generation & 1) == number) continue;
      finding.message += " holds generation " + std::to_string(decoded->generation) +
                         ", which belongs in the other slot";
      add(finding);
      slot_damaged = true;
      continue;
    }
    given_up[number] = decoded.error().code == Code::kUnsupported;
    if (given_up[number]) continue;
    slot_damaged = true;
    if (is_zero(page, kPageSize)) {
      finding.message += " is empty";
    } else if (auto bytes = mend_one_bit({page, page + kPageSize}, kSuperblockChecksumOffset);
               bytes && Superblock::decode(bytes->data(), file->path())) {
      size_t at = 0;
      while ((*bytes)[at] == page[at]) at++;
      mended[number] = *Superblock::decode(bytes->data(), file->path());
      finding.message += ": one bit is wrong, in byte " + std::to_string(at);
      finding.file_offset += at;
    } else {
      finding.message += decoded.error().code == Code::kNotAnImage
                             ? " has no magic number"
                             : ": " + without_path(decoded.error().message, file->path());
    }
  }
  // A power cut may tear the slot that is being written, even by a single missing bit. Then the
  // other slot counts, and names everything that exists. A slot with a corrected bit is used only
  // if the other one leads nowhere.
  for (uint64_t number = 0; number < 2; number++) {
    if (found[number] || given_up[number]) continue;
    if (found[1 - number] && !is_intact_slot(slots.data() + number * kPageSize)) {
      slot_findings[number].severity = Severity::kNote;
      slot_findings[number].message += "; the other slot counts, as after a power cut";
    }
    add(slot_findings[number]);
  }
  take_superblock(found, mended);
  return {};
}

// Chooses the superblock that counts, among the intact slots and those with a corrected bit.
void Inspection::take_superblock(const std::optional<Superblock> (&found)[2],
                                 const std::optional<Superblock> (&mended)[2]) {
  for (const auto* slot : {&mended[0], &mended[1], &found[0], &found[1]})
    if (*slot) candidates_.push_back(**slot);
  const bool any = found[0] || found[1];
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [&](const Superblock& a, const Superblock& b) {
                     const auto is_found = [&](const Superblock& it) {
                       return (found[0] && it.generation == found[0]->generation) ||
                              (found[1] && it.generation == found[1]->generation);
                     };
                     return std::pair(any && is_found(a), a.generation) >
                            std::pair(any && is_found(b), b.generation);
                   });
  if (candidates_.empty()) return;
  superblock = candidates_.front();
  for (const Superblock& candidate : candidates_) newest = std::max(newest, candidate.generation);
  std::erase_if(candidates_, [&](const Superblock& candidate) {
    const bool other =
        candidate.uuid != superblock->uuid || candidate.block_shift != superblock->block_shift;
    if (other) damage("superblock", "the two superblock slots are of different images", 0);
    slot_damaged |= other;
    return other;
  });
  geometry_.emplace(superblock->block_shift);
  report.uuid = format_uuid(superblock->uuid);
  report.generation = superblock->generation;
  report.block_size = geometry_->block_size();
  report.clean = superblock->clean;
  report.crashed = !superblock->clean && !page_cache_survived(*file, *superblock);
}

std::optional<LayerDirectory> Inspection::look_at_directory(const Superblock& from) {
  const std::string& path = file->path();
  auto bytes = read_layer_directory_bytes(*file, from);
  if (!bytes) {
    damage("directory", without_path(bytes.error().message, path), from.directory_offset);
    return std::nullopt;
  }
  auto decoded = LayerDirectory::decode(*bytes, from, file_size_, path);
  if (decoded) return *decoded;
  // A file that was cut short has an intact layer directory, but not all that it names still
  // exists.
  constexpr uint64_t kAnySize = uint64_t{1} << 62;
  if (auto cut = LayerDirectory::decode(*bytes, from, kAnySize, path)) {
    for (const Layer& layer : cut->layers) {
      const uint64_t checksums = uint64_t{layer.checksums} << geometry_->block_shift();
      const uint64_t end = std::max(layer.table_offset, checksums) + layer.table_length;
      if (end <= file_size_) continue;
      wanted_size = std::max(wanted_size, end);
      Finding finding;
      finding.structure = "table";
      finding.message = "the table of " +
                        (layer.name.empty() ? "layer " + std::to_string(layer.id) : layer.name) +
                        " extends beyond the end of the file, which was cut short";
      finding.file_offset = layer.table_offset;
      finding.layer = layer.id;
      finding.snapshot = layer.name;
      add(std::move(finding));
    }
    return *cut;
  }
  if (auto mended = mend_one_bit(*bytes, kDirectoryChecksumOffset)) {
    if (auto again = LayerDirectory::decode(*mended, from, file_size_, path)) {
      size_t at = 0;
      while ((*mended)[at] == (*bytes)[at]) at++;
      damage("directory", "the layer directory: one bit is wrong, in byte " + std::to_string(at),
             from.directory_offset + at);
      mended_directory = std::move(*mended);
      return *again;
    }
  }
  damage("directory", without_path(decoded.error().message, path), from.directory_offset);
  if (damaged_directory.empty()) {
    damaged_directory = std::move(*bytes);
    damaged_directory_offset = from.directory_offset;
  }
  return std::nullopt;
}

Result<void> Inspection::for_each_entry(
    const Layer& layer, const std::function<Result<void>(uint64_t, uint64_t)>& use,
    const std::function<void(uint64_t, const Error&)>& unreadable) const {
  const uint64_t entries = geometry_->blocks_for(layer.size);
  if (layer.table_offset >= file_size_) return {};
  auto present = present_chunks(*file, layer.table_offset, entries);
  if (!present) return present.error();
  for (const auto& [first, end] : *present) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
      EntryPage page;
      if (auto read = read_entry_page(*file, layer.table_offset, entries, chunk, &page); !read) {
        unreadable(chunk, read.error());
        continue;
      }
      for (uint64_t i = 0; i < kBlocksPerChunk; i++)
        if (page[i]) PCOW_TRY(use(chunk * kBlocksPerChunk + i, page[i]));
    }
  }
  return {};
}

// An interrupted merge: both tables name what the only child of a hidden layer has taken over.
bool Inspection::is_being_merged(const Layer& parent) const {
  return parent.hidden && directory->count_children(parent.id) == 1;
}

EntryFault Inspection::fault_of(uint64_t word) const {
  if (!entry_is_sound(word, geometry_->full_mask(), superblock->is_lazy()))
    return EntryFault::kUnsound;
  Entry entry = Entry::unpack(word);
  if (report.crashed) entry = entry.as_durable();
  const EntryFault otherwise =
      report.clean && entry.durable != entry.written ? EntryFault::kUnsynced : EntryFault::kNone;
  if (entry.index == 0) return otherwise;
  if (entry.index < geometry_->superblock_blocks() ||
      !file->covers((uint64_t{entry.index} + 1) << geometry_->block_shift()))
    return EntryFault::kOutside;
  if (structure_.contains(entry.index)) return EntryFault::kStructure;
  return shared.contains(entry.index) ? EntryFault::kShared : otherwise;
}

void Inspection::describe(const Layer& layer, uint64_t block, uint64_t word, EntryFault fault) {
  if (report.damages >= kListedFindings) {
    report.damages++;
    return;
  }
  const Entry entry = Entry::unpack(word);
  std::string what = "points at block " + std::to_string(entry.index) + " of the file, ";
  switch (fault) {
    case EntryFault::kNone: return;
    case EntryFault::kOutside:
      what += entry.index < geometry_->superblock_blocks() ? "where the superblocks are"
                                                           : "which lies beyond its end";
      break;
    case EntryFault::kStructure: what += "where " + owner_of(entry.index) + " is"; break;
    case EntryFault::kShared: what += "and so does another entry"; break;
    case EntryFault::kUnsynced:
      what = "holds sub-blocks that are not durable, though the image was closed";
      break;
    case EntryFault::kUnsound:
      what = word >> 63 || (entry.remote && !superblock->is_lazy())
                 ? "has bits set that are always zero"
             : entry.remote ? "says that bytes are remote, and contradicts itself"
             : entry.written & ~geometry_->full_mask()
                 ? "has bits for sub-blocks that a block does not have"
             : entry.durable & ~entry.written ? "marks sub-blocks as durable that it does not hold"
                                              : "refers to a block of which it holds nothing";
  }
  damage("entry",
         "the entry of block " + std::to_string(block) + " of " + name_of(layer) + " " + what,
         layer.table_offset + block * 8, layer, block, 1);
}

Result<void> Inspection::look_at_tables(const Progress& progress) {
  const auto occupy = [&](uint64_t offset, uint64_t length) {
    structure_.set(offset >> geometry_->block_shift(), geometry_->blocks_for(length), true);
    used_.set(offset >> geometry_->block_shift(), geometry_->blocks_for(length), true);
  };
  occupy(0, 2 * kPageSize);
  occupy(superblock->directory_offset, superblock->directory_length);
  if (superblock->is_lazy()) occupy(superblock->source_offset, superblock->source_length);
  for (const Layer& layer : directory->layers) {
    occupy(layer.table_offset, layer.table_length);
    if (layer.checksums)
      occupy(uint64_t{layer.checksums} << geometry_->block_shift(), layer.table_length);
    total_ += geometry_->chunks_for(layer.size);
  }
  for (const Layer& layer : directory->layers) {
    const Layer* parent = directory->find(layer.parent);
    if (parent && !is_being_merged(*parent)) parent = nullptr;
    const uint64_t before = done_;
    uint64_t chunk_of_parent = ~uint64_t{0};
    EntryPage page_of_parent;
    const auto taken_from_parent = [&](uint64_t block, uint32_t index) {
      const uint64_t entries = parent ? geometry_->blocks_for(parent->size) : 0;
      if (block >= entries) return false;
      if (block / kBlocksPerChunk != chunk_of_parent) {
        chunk_of_parent = block / kBlocksPerChunk;
        if (!read_entry_page(*file, parent->table_offset, entries, chunk_of_parent,
                             &page_of_parent))
          page_of_parent.fill(0);
      }
      return Entry::unpack(page_of_parent[block % kBlocksPerChunk]).index == index;
    };
    const auto look = [&](uint64_t block, uint64_t word) -> Result<void> {
      const uint64_t done = before + block / kBlocksPerChunk;
      if (progress && done != done_ && !progress(done * kPageSize, total_ * kPageSize))
        return Error(Code::kCancelled, "the check of " + file->path() + " was interrupted");
      done_ = done;
      const EntryFault fault = fault_of(word);
      if (fault != EntryFault::kNone) describe(layer, block, word, fault);
      // An entry that names no block of its own claims none.
      if (fault != EntryFault::kNone && fault != EntryFault::kUnsynced) return {};
      Entry entry = Entry::unpack(word);
      if (report.crashed && entry != entry.as_durable()) {
        report.dropped +=
            uint64_t(std::popcount(static_cast<uint16_t>(entry.written & ~entry.durable)))
            << geometry_->sub_block_shift();
        entry = entry.as_durable();
      }
      if (entry.remote)
        report.remote += uint64_t(std::popcount(entry.written)) << geometry_->sub_block_shift();
      if (!entry.index) return {};
      if (!used_.contains(entry.index)) {
        used_.set(entry.index, 1, true);
        report.data += geometry_->block_size();
      } else if (!taken_from_parent(block, entry.index)) {
        shared.insert(entry.index);
      }
      return {};
    };
    const auto unreadable = [&](uint64_t chunk, const Error& error) {
      damage(
          "table", "a page of the table of " + name_of(layer) + " cannot be read: " + error.message,
          layer.table_offset + chunk * kPageSize, layer, chunk * kBlocksPerChunk, kBlocksPerChunk);
    };
    PCOW_TRY(for_each_entry(layer, look, unreadable));
    done_ = before + geometry_->chunks_for(layer.size);
  }
  return look_at_shared();
}

// A second walk, for the blocks that the first one found in two entries.
Result<void> Inspection::look_at_shared() {
  if (shared.empty()) return {};
  for (const Layer& layer : directory->layers) {
    const auto look = [&](uint64_t block, uint64_t word) -> Result<void> {
      if (fault_of(word) == EntryFault::kShared) describe(layer, block, word, EntryFault::kShared);
      return {};
    };
    PCOW_TRY(for_each_entry(layer, look, [](uint64_t, const Error&) {}));
  }
  return {};
}

Result<void> Inspection::look_at_checksums() {
  for (const Layer& layer : directory->layers) {
    const uint64_t begin = uint64_t{layer.checksums} << geometry_->block_shift();
    // A layer that is being merged away loses its pages; after a crash one of them may be half
    // empty.
    if (!layer.checksums || begin >= file_size_ || directory->is_spent(layer)) continue;
    const Checksums checksums(file, *geometry_, layer);
    auto present = present_chunks(*file, begin, geometry_->blocks_for(layer.size));
    if (!present) return present.error();
    for (const auto& [first, end] : *present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        if (checksums.page(chunk)) continue;
        const uint64_t file_offset = begin + chunk * kPageSize;
        damage("checksums", "a page of the checksums of " + name_of(layer) + " is damaged",
               file_offset, layer, chunk * kBlocksPerChunk, kBlocksPerChunk);
        damaged_checksums.push_back(file_offset);
      }
    }
  }
  return {};
}

Result<void> Inspection::look_at_source() {
  if (!superblock->is_lazy()) return {};
  const auto content = read_source(*file, *superblock);
  if (!content)
    damage("source", without_path(content.error().message, file->path()),
           superblock->source_offset);
  return {};
}

Result<void> Inspection::look_at_base() {
  if (!superblock->base) return {};
  // The chain is opened as for reading the image. Of the image itself only the superblock is
  // needed.
  const ImageFile image{file->path(), {}, file, *geometry_};
  const auto bases = Bases(image).open(superblock->base, {});
  if (!bases) {
    const Code code = bases.error().code;
    if (code == Code::kPermission || code == Code::kNoMemory) return bases.error();
    damage("base", without_path(bases.error().message, file->path()), 0);
    return {};
  }
  for (const Layer& layer : directory->layers) {
    if (layer.parent || geometry_->blocks_for(layer.size) >= bases->sources.front()->entries)
      continue;
    damage("base",
           "the base " + bases->resolved + " is larger than " + name_of(layer) +
               ", which stands on it",
           0, layer, 0, 0);
  }
  return {};
}

Result<void> Inspection::for_each_stray(
    const std::function<Result<void>(uint64_t, const std::vector<char>&)>& use) const {
  const uint64_t end = file_size_;
  std::vector<char> bytes;
  for (uint64_t offset = 0; offset < end;) {
    auto data = file->next_data(offset, end);
    if (!data) return data.error();
    if (*data == end) break;
    auto hole = file->next_hole(*data, end);
    if (!hole) return hole.error();
    const uint64_t last = geometry_->blocks_for(*hole);
    for (uint64_t block = used_.next(false, *data >> geometry_->block_shift(), last); block < last;
         block = used_.next(false, block + 1, last)) {
      bytes.resize(geometry_->block_size());
      auto length = file->read(block << geometry_->block_shift(), bytes.data(), bytes.size());
      if (!length) return length.error();
      bytes.resize(*length);  // less than a block if the file has a tail
      if (!is_zero(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()))
        PCOW_TRY(use(block, bytes));
    }
    offset = *hole;
  }
  return {};
}

// In a clean image free space is a hole: a block that is allocated relies on it.
Result<void> Inspection::look_at_free_space() {
  const bool all_known = !(superblock->read_only_compatible & ~kKnownReadOnlyCompatible);
  if (!report.clean || report.in_use || !all_known) return {};
  return for_each_stray([&](uint64_t block, const std::vector<char>&) -> Result<void> {
    Finding finding;
    finding.severity = Severity::kLeak;
    finding.structure = "free space";
    finding.message =
        "block " + std::to_string(block) + " of the file belongs to no layer, but contains data";
    finding.file_offset = block << geometry_->block_shift();
    add(std::move(finding));
    return {};
  });
}

Result<void> Inspection::run(const Progress& progress) {
  report.path = file->path();
  auto size = file->size();
  if (!size) return size.error();
  file_size_ = *size;
  PCOW_TRY(look_at_superblocks());
  if (!superblock) return {};
  // If the newest superblock leads to no layer directory, the structure that another slot names may
  // still exist.
  std::set<uint64_t> looked_at;
  for (const Superblock& candidate : candidates_) {
    if (!looked_at.insert(candidate.directory_offset).second) continue;
    directory = look_at_directory(candidate);
    if (!directory) continue;
    const Superblock first = *superblock;
    superblock = candidate;
    superblock->clean = first.clean && candidate.clean;
    superblock->boot = first.boot;
    superblock->cache = first.cache;
    older_directory = candidate.generation < first.generation;
    break;
  }
  if (!directory) return {};
  report.size = directory->active_layer().size;
  for (const Layer& layer : directory->layers) report.snapshots += layer.name.empty() ? 0 : 1;
  if (report.crashed) {
    for (const Layer& layer : directory->layers) {
      if (layer.id == directory->active || layer.id <= superblock->sealed || layer.hidden) continue;
      Finding finding;
      finding.severity = Severity::kNote;
      finding.structure = "directory";
      finding.message =
          "snapshot " + layer.name + " was being taken when the host crashed: it is not valid";
      finding.layer = layer.id;
      finding.snapshot = layer.name;
      add(std::move(finding));
    }
  }
  PCOW_TRY(look_at_tables(progress));
  PCOW_TRY(look_at_checksums());
  PCOW_TRY(look_at_source());
  PCOW_TRY(look_at_base());
  PCOW_TRY(look_at_free_space());
  if (progress) progress(total_ * kPageSize, total_ * kPageSize);
  return {};
}

}  // namespace pcow
