// How a File stores into persistent memory, without calling write(2) or fdatasync(2).
//
// The position of a page of the file, and the length of the file, are the filesystem's metadata.
// They must be durable before a store has any value. MAP_SYNC guarantees this: "while some memory
// is mapped writable in the address space of the process, it will be visible in the same file at
// the same offset even after the system crashes or is rebooted" (mmap(2)). The kernel implements it
// in the write fault: if the filesystem reports that the inode has metadata that is not durable
// (IOMAP_F_DIRTY), the page becomes writable only after that metadata has been synced
// (dax_finish_sync_fault(), fs/dax.c; Documentation/filesystems/dax.rst names what a filesystem has
// to do). So a successful store into a page implies that the page's position is durable, and the
// length of the file as far as that page.
//
// Such a fault waits for the filesystem's journal whenever its page is new, which holds for each of
// the sixteen pages of a copied block. So a write fault of each page through a plain mapping comes
// first, and allocates the pages. Then the first fault through MAP_SYNC makes all of them durable
// together, and the others find nothing left to do.
#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "engine/disk/file.h"
#include "engine/disk/page.h"
#include "engine/disk/persistent.h"
#include "engine/rules.h"

namespace pcow {
namespace {

// Calls `visit(number, within, length)` for each part of the range that lies in one window.
template <typename Visit>
void each_window(uint64_t offset, uint64_t length, const Visit& visit) {
  for (uint64_t done = 0; done < length;) {
    const uint64_t within = (offset + done) % PersistentMemory::kWindow;
    const uint64_t count = std::min(PersistentMemory::kWindow - within, length - done);
    visit((offset + done) / PersistentMemory::kWindow, within, count);
    done += count;
  }
}

char* bytes_of(const std::unique_ptr<Mapping>& mapping) {
  return reinterpret_cast<char*>(mapping->words());
}

}  // namespace

bool File::has_fresh_holes() const { return memory_ && memory_->has_fresh_holes.load(); }

Result<void> File::sync_stored(uint64_t offset, uint64_t length) {
  if (!memory_) return sync(offset, length);
  if (auto failed = sync_failure()) return *failed;
  return {};
}

void File::persist(const uint64_t* words, uint64_t offset, size_t length) {
  if (keeps(Rule::kEntryFlushed)) {
    observe(FileOperation::kFlush, offset, length, nullptr);
    cpu::flush(words, length);
  }
  if (keeps(Rule::kEntryFencedBeforeReturn)) {
    observe(FileOperation::kFence, 0, 0, nullptr);
    cpu::fence();
  }
}

// The caller holds the mutex exclusively.
Result<void> File::make_window(uint64_t number) {
  PersistentMemory::Window& window = memory_->windows[number];
  if (window.synced) return {};
  const uint64_t offset = number * PersistentMemory::kWindow;
  auto plain = map_by(offset, PersistentMemory::kWindow, true, MAP_SHARED);
  if (!plain) return plain.error();
  auto synced = map_by(offset, PersistentMemory::kWindow, true, memory_->synced_flags);
  if (!synced) return synced.error();
  window = {std::move(*plain), std::move(*synced)};
  return {};
}

// The caller holds the mutex exclusively, and the windows exist. The range consists of whole pages
// that have disk space.
void File::touch(uint64_t offset, uint64_t length) {
  each_window(offset, length, [&](uint64_t number, uint64_t within, uint64_t count) {
    cpu::touch(bytes_of(memory_->windows[number].plain) + within, count);
  });
  observe(FileOperation::kWriteFault, offset, length, nullptr);
  each_window(offset, length, [&](uint64_t number, uint64_t within, uint64_t count) {
    cpu::touch(bytes_of(memory_->windows[number].synced) + within, count);
  });
}

// Afterwards every page of the range has its place durably, for stores. Space is allocated first,
// because a write fault that finds none raises SIGBUS.
Result<void> File::make_ready(uint64_t offset, uint64_t length) {
  const uint64_t first = offset / kPageSize * kPageSize;
  const uint64_t bytes = (offset + length + kPageSize - 1) / kPageSize * kPageSize - first;
  PCOW_TRY(allocate(first, bytes));
  const std::unique_lock lock(memory_->mutex);
  Result<void> mapped;
  each_window(first, bytes, [&](uint64_t number, uint64_t, uint64_t) {
    if (mapped) mapped = make_window(number);
  });
  if (!mapped) return mapped;
  note_end(first + bytes);
  touch(first, bytes);
  if (is_torn()) return torn();
  memory_->ready.set(first / kPageSize, bytes / kPageSize, true);
  return {};
}

Result<void> File::copy_in(uint64_t offset, const void* buffer, size_t length) {
  if (length == 0) return {};
  const uint64_t first = offset / kPageSize;
  const uint64_t end = (offset + length + kPageSize - 1) / kPageSize;
  const auto is_ready = [&] { return memory_->ready.next(false, first, end) == end; };
  std::shared_lock lock(memory_->mutex);
  while (!is_ready()) {
    lock.unlock();
    PCOW_TRY(make_ready(offset, length));
    lock.lock();
  }
  if (const int err = observe(FileOperation::kWrite, offset, length, buffer))
    return disk_error(err, "cannot write " + path_);
  const auto* from = static_cast<const char*>(buffer);
  each_window(offset, length, [&](uint64_t number, uint64_t within, uint64_t count) {
    cpu::copy(bytes_of(memory_->windows.find(number)->second.synced) + within, from, count);
    from += count;
  });
  if (keeps(Rule::kCopyFencedBeforeEntry)) {
    observe(FileOperation::kFence, 0, 0, nullptr);
    cpu::fence();
  }
  // The memory of a page is bad: what was stored is lost.
  return is_torn() ? Result<void>(torn()) : Result<void>();
}

// The file has grown; its new length is durable on return, because entries, which are durable at
// once, will name blocks there. A page at the new end is allocated, so that a write fault of it
// makes the length durable; then the page is punched again. (It reads as zeros before and after.)
Result<void> File::commit_length(uint64_t before, uint64_t length) {
  const uint64_t last = (length - 1) / kPageSize * kPageSize;
  PCOW_TRY(make_ready(last, length - last));
  return last >= before ? make_hole(last, kPageSize) : Result<void>();
}

}  // namespace pcow
