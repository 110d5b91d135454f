// Deleting snapshots.
//
// A deleted layer is first hidden (one change of the directory: from then on it is deleted, whatever happens). A hidden
// layer without children is dropped. One with a single child is merged into it, and then dropped:
//   1. entry by entry, under the chunk's lock, the child takes what it does not hold itself: the parent's whole block
//      where the child has none (the entry is moved: one store), a copy of sub-blocks where it has one already
//   2. sync: the child's entries and copies are durable
//   3. the directory without the parent is committed
//   4. blocks that the child did not take are released
// The parent's table is only read. So after a crash anywhere the merge starts over: what the child has taken, it holds.
// Until step 4 a block may be named by both; blocks that the child lets go meanwhile are held back (Space).

#include <algorithm>
#include <bit>
#include <shared_mutex>

#include "image_state.h"
#include "rules.h"

namespace pcow {
namespace {

// Copies sub-blocks `mask` from one block of the file to another.
Result<void> copy_sub_blocks(File& file, const Geometry& geometry, uint32_t from, uint32_t to, uint16_t mask) {
  std::vector<char> buffer(geometry.block_size());
  for (uint32_t first = 0; first < geometry.sub_blocks(); first++) {
    if (!(mask >> first & 1)) continue;
    uint32_t end = first + 1;
    while (end < geometry.sub_blocks() && (mask >> end & 1)) end++;
    const uint64_t within = uint64_t{first} << geometry.sub_block_shift();
    const size_t length = size_t{end - first} << geometry.sub_block_shift();
    if (from) {
      auto count = file.read((uint64_t{from} << geometry.block_shift()) + within, buffer.data(), length);
      if (!count) return count.error();
      if (*count != length) return Error(Code::kCorrupt, file.path() + " was cut short while it was open");
    } else {
      std::fill_n(buffer.begin(), length, 0);
    }
    PCOW_TRY(file.write((uint64_t{to} << geometry.block_shift()) + within, buffer.data(), length));
    first = end;
  }
  return {};
}

}  // namespace

Result<void> ImageState::merge(const Layer& parent, const Layer& child, const Progress& progress) {
  const uint64_t parent_entries = geometry.blocks_for(parent.size);
  std::shared_ptr<Table> table = active;
  if (child.id != directory.active) {
    auto mapped = Table::map(file, child.table_offset, geometry.blocks_for(child.size), true);
    if (!mapped) return mapped.error();
    table = std::move(*mapped);
  }
  auto present = present_chunks(*file, parent.table_offset, parent_entries);
  if (!present) return present.error();
  uint64_t total = 0;
  for (const auto& [first, end] : *present) total += end - first;
  uint64_t done = 0;

  const std::shared_ptr<const Checksums> checksums = source_in_use(parent.id)->checksums;
  for (const auto& [first, end] : *present) {
    for (uint64_t chunk = first; chunk < end; chunk++, done++) {
      if (progress && !progress(done * kBlocksPerChunk << geometry.block_shift(),
                                total * kBlocksPerChunk << geometry.block_shift()))
        return Error(Code::kCancelled, "the deletion was interrupted; it is finished when " + path +
                                           " is next opened, or by the next deletion");
      EntryPage page;
      PCOW_TRY(read_entry_page(*file, parent.table_offset, parent_entries, chunk, &page));
      for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
        if (page[i] == 0) continue;
        const uint64_t block = chunk * kBlocksPerChunk + i;
        const Entry lower = Entry::unpack(page[i]);
        PCOW_TRY(table->ensure(chunk));
        const std::lock_guard lock(chunk_lock(block));
        Entry entry = Entry::unpack(table->load(block));
        const auto missing = static_cast<uint16_t>(lower.written & ~entry.written);
        if (!missing) continue;
        // In the heir it has no checksum any more.
        if (lower.index && checksums) PCOW_TRY(checksums->verify(block, lower.index));
        if (entry.empty()) {
          entry = lower;
        } else if (!lower.index && !entry.index) {
          entry.written |= missing;
          entry.durable |= missing;
        } else {
          const bool fresh = entry.index == 0;
          if (fresh) {
            // Sub-blocks that are zero in the child stay so: see the write path.
            auto index = allocate_block(*table, block);
            if (!index) return index.error();
            entry.index = *index;
            if (!space->is_durable(*index) && keeps(Rule::kZerosBeforeEntry)) PCOW_TRY(file->sync());
          }
          if (auto copied = copy_sub_blocks(*file, geometry, lower.index, entry.index, missing); !copied) {
            if (fresh) space->release(entry.index, 1);
            return copied;
          }
          entry.written |= missing;
        }
        table->store(block, entry);
        // At once: what an interrupted merge has stored is not looked at again by the one that goes on.
        mark_unsynced(table, chunk);
      }
    }
  }
  if (keeps(Rule::kHeirBeforeSuperblock)) PCOW_TRY(sync());

  Prepared prepared;
  prepared.directory = directory;
  prepared.directory.find(child.id)->parent = parent.parent;
  prepared.directory.erase(parent.id);
  if (child.id != directory.active) {
    prepared.heir = child.id;
    prepared.heir_source = source_of(child, table->present());
  }
  PCOW_TRY(change_directory(&prepared));
  if (progress)
    progress(total * kBlocksPerChunk << geometry.block_shift(), total * kBlocksPerChunk << geometry.block_shift());
  return release_layer(parent, &child);
}

// Releases what a layer that is gone from the directory used: its table, and its blocks but for those that `heir` took.
Result<void> ImageState::release_layer(const Layer& gone, const Layer* heir) {
  const auto release = [&]() -> Result<void> {
    const uint64_t entries = geometry.blocks_for(gone.size);
    auto present = present_chunks(*file, gone.table_offset, entries);
    if (!present) return present.error();
    for (const auto& [first, end] : *present) {
      for (uint64_t chunk = first; chunk < end; chunk++) {
        EntryPage page;
        EntryPage taken{};
        PCOW_TRY(read_entry_page(*file, gone.table_offset, entries, chunk, &page));
        const bool inherited = heir && chunk < geometry.chunks_for(heir->size);
        if (inherited)
          PCOW_TRY(read_entry_page(*file, heir->table_offset, geometry.blocks_for(heir->size), chunk, &taken));
        for (uint64_t i = 0; i < kBlocksPerChunk; i++) {
          const uint32_t index = Entry::unpack(page[i]).index;
          if (index && Entry::unpack(taken[i]).index != index) space->release(index, 1);
        }
      }
    }
    space->release(gone.table_offset >> geometry.block_shift(), gone.table_length >> geometry.block_shift());
    if (gone.checksums) space->release(gone.checksums, gone.table_length >> geometry.block_shift());
    return {};
  };
  auto released = release();
  // Neither in use nor on its way to a hole any more: only an opener that finds the image unclean punches it out.
  if (!released) leaks = true;
  return released;
}

Result<void> ImageState::collect(const Progress& progress) {
  for (;;) {
    const auto spent = std::find_if(directory.layers.begin(), directory.layers.end(), [&](const Layer& layer) {
      return layer.hidden && directory.count_children(layer.id) <= 1;
    });
    if (spent == directory.layers.end()) break;
    // Of all that wait: an heir of any of them may have begun to take blocks over, and whichever fails first ends this.
    space->hold_releases(true);
    const Layer gone = *spent;
    const auto child = std::find_if(directory.layers.begin(), directory.layers.end(),
                                    [&](const Layer& layer) { return layer.parent == gone.id; });
    if (child != directory.layers.end()) {
      const Layer heir = *child;
      PCOW_TRY(merge(gone, heir, progress));
      continue;
    }
    Prepared prepared;
    prepared.directory = directory;
    prepared.directory.erase(gone.id);
    PCOW_TRY(change_directory(&prepared));
    PCOW_TRY(release_layer(gone, nullptr));
  }
  space->hold_releases(false);
  return {};
}

Result<void> Image::remove(const std::string& name, const Progress& progress) {
  ImageState& state = *state_;
  const auto change = [&]() -> Result<void> {
    const std::lock_guard structure(state.structure);
    if (state.closed) return state.closed_error();
    if (!state.writable()) return Error(Code::kReadOnly, state.path + " is open for reading only");
    const Layer* layer = state.directory.find(name);
    if (!layer) return Error(Code::kNotFound, state.path + " has no snapshot called " + name);
    ImageState::Prepared prepared;
    prepared.directory = state.directory;
    Layer* hidden = prepared.directory.find(layer->id);
    hidden->hidden = true;
    hidden->automatic = false;
    hidden->name.clear();
    PCOW_TRY(state.change_directory(&prepared));
    return state.collect(progress);
  };
  return state.noted(change());
}

}  // namespace pcow
