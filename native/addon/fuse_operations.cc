#include "addon/fuse_operations.h"

#define FUSE_USE_VERSION 29
#include <dlfcn.h>
#include <fcntl.h>
#include <fuse.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "addon/directory_watch.h"
#include "addon/flat_files.h"
#include "addon/fuse_channel.h"
#include "addon/fuse_handles.h"
#include "addon/fuse_library.h"
#include "addon/fuse_loop.h"
#include "addon/fuse_nodes.h"
#include "addon/fuse_questions.h"
#include "addon/open_grants.h"

namespace pcow::addon {

namespace {

// Written before the mount's first request, and only read afterwards.
void* libfuse = nullptr;
int directory_fd = -1;
fuse_operations javascript{};
fuse* served = nullptr;  // the session that has our table

std::function<void()> on_session_end;

decltype(&fuse_get_context) fuse_context = nullptr;

std::atomic<uint64_t> interceptions{0};
std::atomic<uint64_t> requests{0};

bool is_native(uint64_t fh) { return fh >= FuseHandles::kFirst; }
bool is_native(const fuse_file_info* file) { return file && is_native(file->fh); }

// A request in progress holds this, so that the image is neither closed nor freed.
struct Request {
  std::shared_ptr<FuseHandle> handle;
  SharedImage::Lease image;
};

Result<Request> begin(uint64_t fh) {
  requests.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    auto handle = FuseHandles::instance().find(fh);
    if (!handle) return Error(Code::kClosed, "no file is open with this handle");
    auto image = handle->image->lease();
    if (!image) {
      // Before an opening of the image is replaced by another one and closed, all handles are moved
      // to the new one.
      if (FuseHandles::instance().find(fh) == handle) return image.error();
      continue;
    }
    if (!handle->remembered.exchange(true, std::memory_order_relaxed)) {
      FuseCache::instance().remember(handle->path, handle->content);
    }
    return Request{std::move(handle), std::move(*image)};
  }
}

// Returns why a request may not write, or 0. EBUSY: the file was opened for writing, and a monitor
// has taken over its image. `cached`: the kernel writes back pages.
int write_refusal(const FuseHandle& handle, bool cached) {
  if (!handle.writable) return -EBADF;
  if (cached && handle.refuses_cached) return -EBUSY;
  return handle.image->writer() ? 0 : -EBUSY;
}

// Returns a request that may write, or why it may not, as an Error. If a monitor is giving the
// image back, the request waits for that. A write-back by the kernel does not wait: nothing may
// write through a mapping beside a monitor, and the code that drops the kernel's cache waits for
// the write-back.
Result<Request> begin_write(uint64_t fh, bool cached) {
  for (;;) {
    {
      auto request = begin(fh);
      if (!request) return request;
      const int refusal = write_refusal(*request->handle, cached);
      if (refusal == 0) return request;
      if (refusal != -EBUSY || cached) return system_error(-refusal, "");
    }
    // Ask only when no request holds the image, because a lease would keep it from being closed.
    const int answer = FuseQuestions::instance().ask(FuseQuestion::Kind::kWrite, fh, 0);
    if (answer < 0) return system_error(-answer, "");
  }
}

// The message of the error is not lost: the engine keeps the last one for `status`.
int answer(const Result<void>& result) { return result ? 0 : -result.error().err; }

// Has a block fetched that a request needs, which holds no image now. Returns 0 if the request
// should be tried again; otherwise a negative errno.
int fetch(const Error& error, uint32_t pid) {
  if (error.code != Code::kRemote || !error.remote) return -error.err;
  return FuseQuestions::instance().fetch(error.remote, pid);
}

Result<size_t> read_once(uint64_t fh, char* buffer, size_t length, uint64_t offset) {
  auto request = begin(fh);
  if (!request) return request.error();
  auto count = request->image->read(request->handle->view.get(), offset, buffer, length);
  if (!count) return count.error();
  Traffic& traffic = request->handle->image->traffic();
  Traffic::count(traffic.reads, 1);
  Traffic::count(traffic.read_bytes, *count);
  const FuseHandle& handle = *request->handle;
  if (handle.lent && !handle.view && !handle.direct) Traffic::count(traffic.cached_reads, 1);
  return *count;
}

int read_image(uint64_t fh, char* buffer, size_t length, uint64_t offset, uint32_t pid) {
  for (;;) {
    const auto count = read_once(fh, buffer, length, offset);
    if (count) return static_cast<int>(*count);
    if (const int failure = fetch(count.error(), pid); failure != 0) return failure;
  }
}

Result<void> write_once(uint64_t fh, const char* buffer, size_t length, uint64_t offset,
                        bool cached) {
  auto request = begin_write(fh, cached);
  if (!request) return request.error();
  auto written = request->image->write(offset, buffer, length);
  if (!written) return written;
  Traffic& traffic = request->handle->image->traffic();
  Traffic::count(traffic.writes, 1);
  Traffic::count(traffic.written_bytes, length);
  return {};
}

int write_image(uint64_t fh, const char* buffer, size_t length, uint64_t offset, bool cached,
                uint32_t pid) {
  for (;;) {
    const auto written = write_once(fh, buffer, length, offset, cached);
    if (written) return static_cast<int>(length);
    if (const int failure = fetch(written.error(), pid); failure != 0) return failure;
  }
}

// Finds the first data (or hole) at or after `offset`; returns the end of the layer if there is
// none.
Result<uint64_t> find_extent(const Image& image, const View* view, uint64_t offset, uint64_t size,
                             bool data) {
  while (offset < size) {
    auto batch = image.map(view, offset, {});
    if (!batch) return batch.error();
    for (const MapExtent& extent : batch->extents) {
      const bool is_data = extent.kind == ExtentKind::kData;
      if (is_data == data && extent.offset + extent.length > offset)
        return std::max(offset, extent.offset);
    }
    if (batch->next <= offset) break;
    offset = batch->next;
  }
  return size;
}

// Holes are reported only if no store can still be in the kernel's cache alone: for snapshots, and
// for images of which no flat file is open for writing, here or by a monitor. For other images
// everything is reported as data, which is always correct.
int64_t seek_image(uint64_t fh, uint64_t offset, uint32_t whence) {
  if (!is_native(fh) || (whence != SEEK_DATA && whence != SEEK_HOLE)) return -EINVAL;
  auto request = begin(fh);
  if (!request) return -request.error().err;
  const FuseHandle& handle = *request->handle;
  const uint64_t size =
      handle.view ? request->image->view_size(*handle.view) : request->image->size();
  if (offset >= size) return -ENXIO;
  const bool data = whence == SEEK_DATA;
  const bool known =
      handle.view || (!handle.lent && !FuseHandles::instance().is_written(*handle.image));
  if (!known) return static_cast<int64_t>(data ? offset : size);
  const auto found = find_extent(*request->image, handle.view.get(), offset, size, data);
  if (!found) return -found.error().err;
  return data && *found >= size ? -ENXIO : static_cast<int64_t>(*found);
}

// The thread that has sent the request which libfuse serves on this thread.
uint32_t caller() { return static_cast<uint32_t>(fuse_context()->pid); }

// If libfuse's own loop runs, these two functions are called for all files.
int read_file(const char* path, char* buffer, size_t length, off_t offset, fuse_file_info* file) {
  if (is_native(file))
    return read_image(file->fh, buffer, length, static_cast<uint64_t>(offset), caller());
  return javascript.read ? javascript.read(path, buffer, length, offset, file) : -ENOSYS;
}

int write_file(const char* path, const char* buffer, size_t length, off_t offset,
               fuse_file_info* file) {
  if (is_native(file))
    return write_image(file->fh, buffer, length, static_cast<uint64_t>(offset), file->writepage,
                       caller());
  return javascript.write ? javascript.write(path, buffer, length, offset, file) : -ENOSYS;
}

// The name of the flat file that a path directly below the root may be; empty if it cannot be one.
std::string flat_file_name(const char* path) {
  const std::string_view name(path + 1);
  return name.starts_with('.') || name.find('/') != name.npos ? std::string() : std::string(name);
}

int sync_file(const char* path, int datasync, fuse_file_info* file) {
  const auto handle = is_native(file) ? FuseHandles::instance().find(file->fh) : nullptr;
  // While an image is being taken back from a monitor, the caller of fsync may map the file and
  // store next. So fsync waits until write-back is accepted again. JavaScript knows when that is.
  if (handle && handle->image->writer() && !handle->refuses_cached) {
    auto request = begin(file->fh);
    if (!request) return -request.error().err;
    // it was not lent in the meantime
    if (request->handle->image->writer() && !request->handle->refuses_cached) {
      Traffic::count(request->handle->image->traffic().syncs, 1);
      const int result = answer(request->image->sync());
      FuseNodes::instance().changed(flat_file_name(path));
      return result;
    }
  }
  // Not for this process to sync, but perhaps for a monitor, which JavaScript asks. No lease is
  // held meanwhile: closing would wait for it.
  return javascript.fsync ? javascript.fsync(path, datasync, file) : -ENOSYS;
}

// `beyond`: the range may end behind the image.
Result<void> discard_once(uint64_t fh, uint64_t start, uint64_t end, bool beyond) {
  auto request = begin_write(fh, false);
  if (!request) return request.error();
  const uint64_t size = request->image->size();
  if (end > size) {
    if (!beyond) return system_error(EFBIG, "");
    end = size;
  }
  if (start >= end) return {};
  Traffic::count(request->handle->image->traffic().discards, 1);
  return request->image->discard(start, end - start);
}

// If the answer is 0, the kernel drops or zeroes its own pages of the range. Preallocation (mode 0)
// is refused: an image is meant to be sparse, and callers then write zeros, or do without.
int allocate_file(const char*, int mode, off_t offset, off_t length, fuse_file_info* file) {
  if (!is_native(file)) return -EOPNOTSUPP;
  const int kind = mode & ~FALLOC_FL_KEEP_SIZE;
  if (kind != FALLOC_FL_PUNCH_HOLE && kind != FALLOC_FL_ZERO_RANGE) return -EOPNOTSUPP;
  const auto start = static_cast<uint64_t>(offset);
  const auto end = start + static_cast<uint64_t>(length);
  for (;;) {
    const auto discarded = discard_once(file->fh, start, end, mode & FALLOC_FL_KEEP_SIZE);
    if (discarded) return 0;
    if (const int failure = fetch(discarded.error(), caller()); failure != 0) return failure;
  }
}

// Decides which cached pages the kernel keeps from earlier opens of the file. A frozen layer never
// changes. The active layer changes only by a rollback while this process is its writer; if another
// process is, nothing is known. While a monitor has the image, the kernel's pages would become
// stale, so only the attached process opens the flat file with the page cache.
int open_lent_file(const char* path, fuse_file_info* file, FuseHandle* handle) {
  const auto pid = static_cast<uint32_t>(fuse_context()->pid);
  const int answer = FuseQuestions::instance().ask(FuseQuestion::Kind::kOpen, file->fh, pid);
  if (answer < 0) {
    if (javascript.release) javascript.release(path, file);
    return answer;
  }
  file->direct_io = answer == FuseQuestions::kDirect && fuse_maps_direct_files();
  handle->direct = file->direct_io != 0;
  return 0;
}

// Whether the kernel may keep its pages of a file that is being opened.
bool keeps_pages(const std::string& path, FuseHandle* handle) {
  if (!handle->view && !handle->image->writer()) return false;
  auto image = handle->image->lease();
  if (!image) return false;
  handle->path = path;
  handle->content = {handle->image->serial(), handle->layer,
                     handle->view ? 0 : (*image)->content_generation()};
  if (FuseCache::instance().holds(handle->path, handle->content)) return true;
  // Not stored yet: the kernel drops the old pages only when it has this answer, and another open
  // that kept them before that would show the old content. The first request with this handle shows
  // that the pages have been dropped.
  handle->remembered.store(false);
  return false;
}

int open_file(const char* path, fuse_file_info* file) {
  if (!javascript.open) return -ENOSYS;
  const int result = javascript.open(path, file);
  if (result != 0) return result;
  if (!is_native(file)) {
    // A control file: its text may be longer when it is read than when its size was asked for.
    file->direct_io = 1;
    return 0;
  }
  FuseHandles::instance().set_opener(file->fh, static_cast<uint32_t>(fuse_context()->pid));
  // A process that opens a file sees the present attributes, even if inotify has not reported the
  // change to this process yet.
  FuseNodes::instance().changed(flat_file_name(path));
  auto handle = FuseHandles::instance().find(file->fh);
  if (handle && handle->lent && !handle->view) return open_lent_file(path, file, handle.get());
  if (handle) file->keep_cache = keeps_pages(path, handle.get());
  return 0;
}

// open(2) of a flat file that JavaScript has granted. Returns nothing if JavaScript must be asked.
std::optional<OpenedFile> open_granted(uint64_t node, uint32_t flags, uint32_t pid) {
  const auto name = FuseNodes::instance().name_of(node);
  if (!name) return std::nullopt;
  const bool writable = (flags & O_ACCMODE) != O_RDONLY;
  auto image = OpenGrants::instance().find(*name, writable);
  // status() also checks that the name still has the same image file.
  if (!image || !FlatFiles::instance().status(directory_fd, *name)) return std::nullopt;
  auto handle = std::make_shared<FuseHandle>();
  handle->image = std::move(image);
  handle->writable = writable;
  handle->opener = pid;
  handle->granted = *name;
  const bool keep_cache = keeps_pages("/" + *name, handle.get());
  const uint64_t fh = OpenGrants::instance().open(*name, std::move(handle));
  if (fh == 0) return std::nullopt;
  FuseNodes::instance().changed(*name);
  return OpenedFile{fh, keep_cache};
}

// Returns false if libfuse must be asked.
bool release_granted(uint64_t fh) {
  const auto handle = is_native(fh) ? FuseHandles::instance().find(fh) : nullptr;
  if (!handle || handle->granted.empty()) return false;
  OpenGrants::instance().release(handle->granted, fh);
  return true;
}

// fuse-native's fields have 32 bits: a large disk would appear to be empty.
int stat_filesystem(const char*, struct statvfs* stat) {
  if (fstatvfs(directory_fd, stat) != 0) return -errno;
  stat->f_namemax -= image_file_of("").size();
  return 0;
}

// fuse-native passes the access time twice. The times of a flat file are those of its image file;
// control files have no times.
int set_times(const char* path, const timespec times[2]) {
  const std::string name = flat_file_name(path);
  if (name.empty()) return 0;
  return utimensat(directory_fd, image_file_of(name).c_str(), times, AT_SYMLINK_NOFOLLOW) == 0
             ? 0
             : -errno;
}

bool stat_flat_file(const std::string& name, struct stat* stat) {
  if (name.empty()) return false;
  const auto found = FlatFiles::instance().status(directory_fd, name);
  if (!found) return false;
  *stat = found->status;
  FuseNodes::instance().learn(name);
  return true;
}

// stat(2) of a flat file whose node is known. Returns nothing if libfuse must be asked.
std::optional<KeptStatus> status_of_node(uint64_t node) {
  const auto name = FuseNodes::instance().keep(node);
  if (!name) return std::nullopt;
  return FlatFiles::instance().status(directory_fd, *name);
}

// fuse-native's fields for these two have 32 bits. JavaScript puts the upper half of the inode
// number into the field of the device, which the kernel does not get.
void join_inode(struct stat* stat) {
  stat->st_ino |= uint64_t{stat->st_dev} << 32;
  stat->st_dev = 0;
}

// JavaScript finds out what a name means, and registers it with FlatFiles. JavaScript's own answer
// for a flat file is replaced, so that the times are exact from the first answer on: fuse-native's
// are not.
int get_attributes(const char* path, struct stat* stat) {
  const std::string name = flat_file_name(path);
  if (stat_flat_file(name, stat)) return 0;
  const int result = javascript.getattr ? javascript.getattr(path, stat) : -ENOSYS;
  if (result != 0) return result;
  join_inode(stat);
  stat_flat_file(name, stat);
  return 0;
}

int get_open_attributes(const char* path, struct stat* stat, fuse_file_info*) {
  return get_attributes(path, stat);
}

struct Listing {
  void* buffer;
  fuse_fill_dir_t fill;
};

int list_file(void* listing, const char* name, const struct stat* stat, off_t offset) {
  const auto& [buffer, fill] = *static_cast<const Listing*>(listing);
  if (!stat) return fill(buffer, name, stat, offset);
  struct stat joined = *stat;
  join_inode(&joined);
  return fill(buffer, name, &joined, offset);
}

int list_directory(const char* path, void* buffer, fuse_fill_dir_t fill, off_t offset,
                   fuse_file_info* file) {
  Listing listing{buffer, fill};
  return javascript.readdir ? javascript.readdir(path, &listing, list_file, offset, file) : -ENOSYS;
}

// The kernel asks for security.capability before every write(2), and only user.* attributes exist
// here. libvirt keeps the owner of a file in trusted.*, unless a filesystem does not support it:
// after "no data" it would try to store it.
int get_attribute(const char* path, const char* name, char* value, size_t size) {
  if (!javascript.getxattr) return -ENOSYS;
  if (std::strncmp(name, "trusted.", 8) == 0) return -EOPNOTSUPP;
  if (std::strncmp(name, "user.", 5) != 0) return -ENODATA;
  const int length = javascript.getxattr(path, name, value, size);
  // fuse-native copies what fits and returns the whole length. Callers that guess a size need
  // ERANGE to try a larger one.
  return size != 0 && length > 0 && static_cast<size_t>(length) > size ? -ERANGE : length;
}

// The session has ended, for whatever reason: there will be no more requests.
void end_session(void*) {
  if (on_session_end) on_session_end();
}

using FuseNew = fuse* (*)(fuse_chan*, fuse_args*, const fuse_operations*, size_t, void*);
using FuseLoop = int (*)(fuse*);

// The function of the version that fuse-native was linked with; null if there is none.
template <typename Function>
Function real(const char* name, const char* version) {
  void* library = libfuse ? libfuse : dlopen("libfuse.so.2", RTLD_NOW | RTLD_NOLOAD);
  Function found = nullptr;
  if (library) find_function(library, name, version, &found);
  return found;
}

// libfuse lets child processes inherit its descriptor of /dev/fuse. A helper that outlives a killed
// mount (`sync --data` on this very mount) would keep the connection alive, and it would wait, with
// all others, for answers that never come.
void keep_from_children(fuse_chan* channel) {
  const auto descriptor_of = reinterpret_cast<int (*)(fuse_chan*)>(dlsym(libfuse, "fuse_chan_fd"));
  if (descriptor_of) fcntl(descriptor_of(channel), F_SETFD, FD_CLOEXEC);
}

}  // namespace

Result<void> prepare_fuse(const std::string& library, const std::string& directory) {
  if (libfuse)
    return Error(Code::kBusy,
                 "the FUSE library is already loaded: a process can serve only one mount");
  const int fd = ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return system_error(errno, "can't open the image directory " + directory);
  // RTLD_GLOBAL and NODELETE: fuse-native is loaded later, and finds the library by its SONAME.
  void* opened = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  if (!opened) {
    ::close(fd);
    return Error(Code::kUnsupported, std::string("cannot load the FUSE library: ") + dlerror());
  }
  if (!find_function(opened, "fuse_get_context", "FUSE_2.2", &fuse_context)) {
    ::close(fd);
    return Error(Code::kUnsupported, "the FUSE library has no function fuse_get_context");
  }
  directory_fd = fd;
  libfuse = opened;
  return {};
}

void set_fuse_end(std::function<void()> hook) { on_session_end = std::move(hook); }

uint64_t fuse_interceptions() { return interceptions.load(); }

uint64_t fuse_requests() { return requests.load(); }

// fuse-native calls this instead of libfuse's function. Without prepare_fuse, and for a second
// mount, the table is passed on unchanged.
extern "C" __attribute__((visibility("default"))) fuse* fuse_new(fuse_chan* channel,
                                                                 fuse_args* arguments,
                                                                 const fuse_operations* operations,
                                                                 size_t size, void* user_data) {
  const auto make = real<FuseNew>("fuse_new", "FUSE_2.6");
  if (!make) return nullptr;
  keep_from_children(channel);
  if (!libfuse || interceptions.exchange(1) != 0)
    return make(channel, arguments, operations, size, user_data);
  std::memcpy(&javascript, operations, size < sizeof javascript ? size : sizeof javascript);
  fuse_operations table = javascript;
  table.getattr = get_attributes;
  table.fgetattr = get_open_attributes;
  table.readdir = list_directory;
  table.open = open_file;
  table.read = read_file;
  table.write = write_file;
  table.fsync = sync_file;
  table.fallocate = allocate_file;
  table.statfs = stat_filesystem;
  table.utimens = set_times;
  table.getxattr = get_attribute;
  table.destroy = end_session;
  table.flag_utime_omit_ok = 1;
  fuse_chan* better = make_fuse_channel(libfuse, channel);
  served = make(better ? better : channel, arguments, &table, sizeof table, user_data);
  return served;
}

// fuse-native calls this, too, on the thread on which it serves a mount.
extern "C" __attribute__((visibility("default"))) int fuse_loop_mt(fuse* session) {
  if (session && session == served) {
    DirectoryWatch::instance().begin(directory_fd);
    const DirectOperations operations = {is_native,      read_image,   write_image,    seek_image,
                                         status_of_node, open_granted, release_granted};
    const auto ended = run_fuse_loop(libfuse, session, operations);
    DirectoryWatch::instance().end();
    if (ended) return *ended;
  }
  const auto loop = real<FuseLoop>("fuse_loop_mt", "FUSE_2.2");
  return loop ? loop(session) : -1;
}

}  // namespace pcow::addon
