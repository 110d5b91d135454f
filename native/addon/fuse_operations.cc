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

#include "addon/flat_files.h"
#include "addon/fuse_channel.h"
#include "addon/fuse_handles.h"
#include "addon/fuse_library.h"
#include "addon/fuse_loop.h"
#include "addon/fuse_questions.h"

namespace pcow::addon {

namespace {

// Written before the mount's first request, only read afterwards.
void* libfuse = nullptr;
int directory_fd = -1;
fuse_operations javascript{};
fuse* served = nullptr;  // what has our table

std::function<void()> on_end;

decltype(&fuse_get_context) fuse_context = nullptr;

std::atomic<uint64_t> interceptions{0};
std::atomic<uint64_t> requests{0};

constexpr std::string_view kImageSuffix = ".pcow";

bool is_native(uint64_t fh) { return fh >= FuseHandles::kFirst; }
bool is_native(const fuse_file_info* file) { return file && is_native(file->fh); }

// What a request holds while it is under way: the image is neither closed nor freed meanwhile.
struct Request {
  std::shared_ptr<FuseHandle> handle;
  SharedImage::Lease image;
};

Result<Request> begin(uint64_t fh) {
  requests.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    auto handle = FuseHandles::instance().find(fh);
    if (!handle) return Error(Code::kClosed, "no file is open under this handle");
    auto image = handle->image->lease();
    if (!image) {
      // Before an opening of the image is closed for another one, every handle goes over to that.
      if (FuseHandles::instance().find(fh) == handle) return image.error();
      continue;
    }
    if (!handle->remembered.exchange(true, std::memory_order_relaxed)) {
      FuseCache::instance().remember(handle->path, handle->content);
    }
    return Request{std::move(handle), std::move(*image)};
  }
}

// Why a request may not write; 0 where it may. EBUSY: the file was opened for writing, and its image has been taken over by a
// monitor. `cached`: it is the kernel that writes back pages.
int write_refusal(const FuseHandle& handle, bool cached) {
  if (!handle.writable) return -EBADF;
  if (cached && handle.refuses_cached) return -EBUSY;
  return handle.image->writer() ? 0 : -EBUSY;
}

// A request that may write, or the negative errno for why not. Where a monitor gives the image back, the request waits for that. What the
// kernel writes back does not wait: nobody may write through a mapping beside a monitor, and who drops the kernel's cache waits for it.
Result<Request> begin_write(uint64_t fh, bool cached) {
  for (;;) {
    {
      auto request = begin(fh);
      if (!request) return request;
      const int refusal = write_refusal(*request->handle, cached);
      if (refusal == 0) return request;
      if (refusal != -EBUSY || cached) return system_error(-refusal, "");
    }
    // Not while the request keeps the image from being closed.
    const int answer = FuseQuestions::instance().ask(FuseQuestion::Kind::kWrite, fh, 0);
    if (answer < 0) return system_error(-answer, "");
  }
}

// The engine keeps the sentence of its last error for `status`.
int answer(const Result<void>& result) { return result ? 0 : -result.error().err; }

int read_image(uint64_t fh, char* buffer, size_t length, uint64_t offset) {
  auto request = begin(fh);
  if (!request) return -request.error().err;
  auto count = request->image->read(request->handle->view.get(), offset, buffer, length);
  if (!count) return -count.error().err;
  Traffic& traffic = request->handle->image->traffic();
  Traffic::count(traffic.reads, 1);
  Traffic::count(traffic.read_bytes, *count);
  const FuseHandle& handle = *request->handle;
  if (handle.lent && !handle.view && !handle.direct) Traffic::count(traffic.cached_reads, 1);
  return static_cast<int>(*count);
}

int write_image(uint64_t fh, const char* buffer, size_t length, uint64_t offset, bool cached) {
  auto request = begin_write(fh, cached);
  if (!request) return -request.error().err;
  auto written = request->image->write(offset, buffer, length);
  if (!written) return -written.error().err;
  Traffic& traffic = request->handle->image->traffic();
  Traffic::count(traffic.writes, 1);
  Traffic::count(traffic.written_bytes, length);
  return static_cast<int>(length);
}

// Where what is asked for begins, from `offset` on; the end of the layer where that is nowhere.
Result<uint64_t> find_extent(const Image& image, const View* view, uint64_t offset, uint64_t size, bool data) {
  while (offset < size) {
    auto batch = image.map(view, offset, {});
    if (!batch) return batch.error();
    for (const MapExtent& extent : batch->extents) {
      const bool is_data = extent.kind == ExtentKind::kData;
      if (is_data == data && extent.offset + extent.length > offset) return std::max(offset, extent.offset);
    }
    if (batch->next <= offset) break;
    offset = batch->next;
  }
  return size;
}

// Holes are told of what nobody can be changing by stores that are in the kernel's cache only: snapshots, and images of which no flat
// file is open for writing, here or by a monitor. Of others everything is data, which is never wrong.
int64_t seek_image(uint64_t fh, uint64_t offset, uint32_t whence) {
  if (!is_native(fh) || (whence != SEEK_DATA && whence != SEEK_HOLE)) return -EINVAL;
  auto request = begin(fh);
  if (!request) return -request.error().err;
  const FuseHandle& handle = *request->handle;
  const uint64_t size = handle.view ? request->image->view_size(*handle.view) : request->image->size();
  if (offset >= size) return -ENXIO;
  const bool data = whence == SEEK_DATA;
  const bool known = handle.view || (!handle.lent && !FuseHandles::instance().is_written(*handle.image));
  if (!known) return static_cast<int64_t>(data ? offset : size);
  const auto found = find_extent(*request->image, handle.view.get(), offset, size, data);
  if (!found) return -found.error().err;
  return data && *found >= size ? -ENXIO : static_cast<int64_t>(*found);
}

// Where the loop is libfuse's own, these two are asked for all files.
int read_file(const char* path, char* buffer, size_t length, off_t offset, fuse_file_info* file) {
  if (is_native(file)) return read_image(file->fh, buffer, length, static_cast<uint64_t>(offset));
  return javascript.read ? javascript.read(path, buffer, length, offset, file) : -ENOSYS;
}

int write_file(const char* path, const char* buffer, size_t length, off_t offset, fuse_file_info* file) {
  if (is_native(file)) return write_image(file->fh, buffer, length, static_cast<uint64_t>(offset), file->writepage);
  return javascript.write ? javascript.write(path, buffer, length, offset, file) : -ENOSYS;
}

int sync_file(const char* path, int datasync, fuse_file_info* file) {
  const auto handle = is_native(file) ? FuseHandles::instance().find(file->fh) : nullptr;
  // While an image is being taken back from a monitor, who waits for its fsync may map and store next: so it waits until write-back is
  // taken again, which JavaScript knows.
  if (handle && handle->image->writer() && !handle->refuses_cached) {
    auto request = begin(file->fh);
    if (!request) return -request.error().err;
    if (request->handle->image->writer() && !request->handle->refuses_cached) {  // it was not lent just now
      Traffic::count(request->handle->image->traffic().syncs, 1);
      return answer(request->image->sync());
    }
  }
  // Not ours to sync, but perhaps a monitor's, which JavaScript asks. No lease meanwhile: closing would wait for it.
  return javascript.fsync ? javascript.fsync(path, datasync, file) : -ENOSYS;
}

// The kernel has dropped or zeroed its own pages of the range when the answer is 0. Preallocation (mode 0) is refused: an image
// is sparse on purpose, and callers fall back to writing zeros or do without.
int allocate_file(const char*, int mode, off_t offset, off_t length, fuse_file_info* file) {
  if (!is_native(file)) return -EOPNOTSUPP;
  const int kind = mode & ~FALLOC_FL_KEEP_SIZE;
  if (kind != FALLOC_FL_PUNCH_HOLE && kind != FALLOC_FL_ZERO_RANGE) return -EOPNOTSUPP;
  auto request = begin_write(file->fh, false);
  if (!request) return -request.error().err;
  const uint64_t size = request->image->size();
  const auto start = static_cast<uint64_t>(offset);
  auto end = start + static_cast<uint64_t>(length);
  if (end > size) {
    if (!(mode & FALLOC_FL_KEEP_SIZE)) return -EFBIG;
    end = size;
  }
  if (start >= end) return 0;
  Traffic::count(request->handle->image->traffic().discards, 1);
  return answer(request->image->discard(start, end - start));
}

// Which pages of the file's earlier openings the kernel keeps. A frozen layer never changes, the active one only by a rollback
// as long as this process is its writer; where another process is, nothing is known.
// While a monitor has the image, the kernel's pages would grow old: the attached process alone opens the flat file with the page cache.
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

int open_file(const char* path, fuse_file_info* file) {
  if (!javascript.open) return -ENOSYS;
  const int result = javascript.open(path, file);
  if (result != 0) return result;
  if (!is_native(file)) {
    // A control file: its text may be longer when it is read than it was when its size was asked for.
    file->direct_io = 1;
    return 0;
  }
  FuseHandles::instance().set_opener(file->fh, static_cast<uint32_t>(fuse_context()->pid));
  auto handle = FuseHandles::instance().find(file->fh);
  if (handle && handle->lent && !handle->view) return open_lent_file(path, file, handle.get());
  if (!handle || (!handle->view && !handle->image->writer())) return 0;
  auto image = handle->image->lease();
  if (!image) return 0;
  handle->path = path;
  handle->content = {handle->image->serial(), handle->layer, handle->view ? 0 : (*image)->content_generation()};
  file->keep_cache = FuseCache::instance().holds(handle->path, handle->content);
  // Not remembered yet: the kernel drops the old pages only when it has this answer, and another opening that kept them
  // before that would show the old content. The first request with this handle shows that it is done.
  if (!file->keep_cache) handle->remembered.store(false);
  return 0;
}

// fuse-native's fields are 32-bit, so a large disk would show as empty.
int stat_filesystem(const char*, struct statvfs* stat) {
  if (fstatvfs(directory_fd, stat) != 0) return -errno;
  stat->f_namemax -= kImageSuffix.size();
  return 0;
}

// Of a path right below the root, the name of the flat file that it may be; empty: it can't be one.
std::string flat_file_name(const char* path) {
  const std::string_view name(path + 1);
  return name.starts_with('.') || name.find('/') != name.npos ? std::string() : std::string(name);
}

std::string image_file(const std::string& name) { return name + std::string(kImageSuffix); }

// fuse-native passes the access time twice. The times of a flat file are those of its image file; control files have none.
int set_times(const char* path, const timespec times[2]) {
  const std::string name = flat_file_name(path);
  if (name.empty()) return 0;
  return utimensat(directory_fd, image_file(name).c_str(), times, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : -errno;
}

bool stat_flat_file(const std::string& name, struct stat* stat) {
  if (name.empty()) return false;
  const auto found = FlatFiles::instance().status(directory_fd, name, image_file(name));
  if (found) *stat = *found;
  return found.has_value();
}

// fuse-native's fields for these two have 32 bits each. JavaScript puts the upper half of the inode number into that of the device, which
// the kernel is not told.
void join_inode(struct stat* stat) {
  stat->st_ino |= uint64_t{stat->st_dev} << 32;
  stat->st_dev = 0;
}

// JavaScript finds out what a name stands for, and tells FlatFiles. What it answers of a flat file itself is replaced, so that the times
// have all their digits from the first answer on: fuse-native's do not.
int get_attributes(const char* path, struct stat* stat) {
  const std::string name = flat_file_name(path);
  if (stat_flat_file(name, stat)) return 0;
  const int result = javascript.getattr ? javascript.getattr(path, stat) : -ENOSYS;
  if (result != 0) return result;
  join_inode(stat);
  stat_flat_file(name, stat);
  return 0;
}

int get_open_attributes(const char* path, struct stat* stat, fuse_file_info*) { return get_attributes(path, stat); }

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

int list_directory(const char* path, void* buffer, fuse_fill_dir_t fill, off_t offset, fuse_file_info* file) {
  Listing listing{buffer, fill};
  return javascript.readdir ? javascript.readdir(path, &listing, list_file, offset, file) : -ENOSYS;
}

// The kernel asks for security.capability before every write(2), and nothing but user.* is ever there. libvirt keeps the owner
// of a file in trusted.*, unless a file system can't have it: "no data" would make it try to store it.
int get_attribute(const char* path, const char* name, char* value, size_t size) {
  if (!javascript.getxattr) return -ENOSYS;
  if (std::strncmp(name, "trusted.", 8) == 0) return -EOPNOTSUPP;
  if (std::strncmp(name, "user.", 5) != 0) return -ENODATA;
  const int length = javascript.getxattr(path, name, value, size);
  // fuse-native copies what fits and returns the whole length; callers that guess a size wait for this to try a larger one.
  return size != 0 && length > 0 && static_cast<size_t>(length) > size ? -ERANGE : length;
}

// The session is over, whoever ended it: nothing more will be asked.
void end_session(void*) {
  if (on_end) on_end();
}

using FuseNew = fuse* (*)(fuse_chan*, fuse_args*, const fuse_operations*, size_t, void*);
using FuseLoop = int (*)(fuse*);

// Of the version that fuse-native was linked with; null where there is none.
template <typename Function>
Function real(const char* name, const char* version) {
  void* library = libfuse ? libfuse : dlopen("libfuse.so.2", RTLD_NOW | RTLD_NOLOAD);
  Function found = nullptr;
  if (library) find_function(library, name, version, &found);
  return found;
}

// libfuse leaves its descriptor of /dev/fuse to child processes. A helper that outlives a killed mount (`sync --data` on
// this very mount) would keep the connection alive, and wait, with everybody else, for answers that never come.
void keep_from_children(fuse_chan* channel) {
  const auto descriptor_of = reinterpret_cast<int (*)(fuse_chan*)>(dlsym(libfuse, "fuse_chan_fd"));
  if (descriptor_of) fcntl(descriptor_of(channel), F_SETFD, FD_CLOEXEC);
}

}  // namespace

Result<void> prepare_fuse(const std::string& library, const std::string& directory) {
  if (libfuse) return Error(Code::kBusy, "the FUSE library is loaded already: a process serves one mount");
  const int fd = ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return system_error(errno, "can't open the image directory " + directory);
  // RTLD_GLOBAL and NODELETE: fuse-native, loaded later, finds it by its SONAME.
  void* opened = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
  if (!opened) {
    ::close(fd);
    return Error(Code::kUnsupported, std::string("the FUSE library can't be loaded: ") + dlerror());
  }
  if (!find_function(opened, "fuse_get_context", "FUSE_2.2", &fuse_context)) {
    ::close(fd);
    return Error(Code::kUnsupported, "the FUSE library has no fuse_get_context");
  }
  directory_fd = fd;
  libfuse = opened;
  return {};
}

void set_fuse_end(std::function<void()> hook) { on_end = std::move(hook); }

uint64_t fuse_interceptions() { return interceptions.load(); }

uint64_t fuse_requests() { return requests.load(); }

// Called by fuse-native in place of libfuse's. Without prepare_fuse, and for a second mount, the table is passed on as it is.
extern "C" __attribute__((visibility("default"))) fuse* fuse_new(fuse_chan* channel, fuse_args* arguments,
                                                                 const fuse_operations* operations, size_t size,
                                                                 void* user_data) {
  const auto make = real<FuseNew>("fuse_new", "FUSE_2.6");
  if (!make) return nullptr;
  keep_from_children(channel);
  if (!libfuse || interceptions.exchange(1) != 0) return make(channel, arguments, operations, size, user_data);
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

// Likewise: the thread on which fuse-native serves a mount.
extern "C" __attribute__((visibility("default"))) int fuse_loop_mt(fuse* session) {
  if (session && session == served) {
    const auto ended = run_fuse_loop(libfuse, session, {is_native, read_image, write_image, seek_image});
    if (ended) return *ended;
  }
  const auto loop = real<FuseLoop>("fuse_loop_mt", "FUSE_2.2");
  return loop ? loop(session) : -1;
}

}  // namespace pcow::addon
