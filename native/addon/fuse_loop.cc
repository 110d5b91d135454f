#include "addon/fuse_loop.h"

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "addon/directory_watch.h"
#include "addon/fuse_channel.h"
#include "addon/fuse_library.h"
#include "addon/fuse_nodes.h"
#include "addon/fuse_questions.h"
#include "engine/disk/bus_guard.h"

namespace pcow::addon {

namespace {

// At most this many threads wait for requests: surplus threads end after they have served theirs.
constexpr int kMostIdle = 10;

// The same as libfuse's default, so that a mount whose process has died is noticed.
constexpr std::chrono::seconds kMountpointValid{1};
// FuseNodes notifies the kernel when a name is gone.
constexpr std::chrono::seconds kNameValid = std::chrono::hours(1);

struct LoopLibrary {
  decltype(&fuse_get_session) get_session;
  decltype(&fuse_session_next_chan) next_chan;
  decltype(&fuse_session_process_buf) process_buf;
  decltype(&fuse_session_exited) exited;
  decltype(&fuse_session_reset) reset;
  decltype(&fuse_chan_recv) receive;
  decltype(&fuse_chan_bufsize) buffer_size;
  decltype(&fuse_chan_fd) descriptor;
};

bool load(void* libfuse, LoopLibrary* library) {
  return find_function(libfuse, "fuse_get_session", "FUSE_2.6", &library->get_session) &&
         find_function(libfuse, "fuse_session_next_chan", "FUSE_2.4", &library->next_chan) &&
         find_function(libfuse, "fuse_session_process_buf", "FUSE_2.9", &library->process_buf) &&
         find_function(libfuse, "fuse_session_exited", "FUSE_2.4", &library->exited) &&
         find_function(libfuse, "fuse_session_reset", "FUSE_2.4", &library->reset) &&
         find_function(libfuse, "fuse_chan_recv", "FUSE_2.6", &library->receive) &&
         find_function(libfuse, "fuse_chan_bufsize", "FUSE_2.4", &library->buffer_size) &&
         find_function(libfuse, "fuse_chan_fd", "FUSE_2.4", &library->descriptor);
}

// The buffer of one thread: for a request, and then, if it reads, for the answer. The bytes of a
// write or read lie at the start of a page, as in the image's file and in the page cache, and in
// one huge page if possible: the kernel copies page by page, and looks each page up.
class Buffer {
 public:
  explicit Buffer(size_t largest) {
    const size_t length = (kPage + largest + kHugePage - 1) / kHugePage * kHugePage;
    void* made = std::aligned_alloc(kHugePage, length);
    if (made) madvise(made, length, MADV_HUGEPAGE);
    memory_.reset(static_cast<char*>(made));
  }
  bool is_there() const { return memory_ != nullptr; }
  char* request() const { return bytes() - sizeof(fuse_in_header) - sizeof(fuse_write_in); }
  char* bytes() const { return memory_.get() + kPage; }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
};

fuse_attr_out attributes_of(const KeptStatus& kept) {
  const struct stat& status = kept.status;
  fuse_attr_out out = {};
  out.attr_valid = static_cast<uint64_t>(kept.valid.count());
  out.attr.ino = status.st_ino;
  out.attr.size = static_cast<uint64_t>(status.st_size);
  out.attr.blocks = static_cast<uint64_t>(status.st_blocks);
  out.attr.atime = static_cast<uint64_t>(status.st_atim.tv_sec);
  out.attr.mtime = static_cast<uint64_t>(status.st_mtim.tv_sec);
  out.attr.ctime = static_cast<uint64_t>(status.st_ctim.tv_sec);
  out.attr.atimensec = static_cast<uint32_t>(status.st_atim.tv_nsec);
  out.attr.mtimensec = static_cast<uint32_t>(status.st_mtim.tv_nsec);
  out.attr.ctimensec = static_cast<uint32_t>(status.st_ctim.tv_nsec);
  out.attr.mode = status.st_mode;
  out.attr.nlink = static_cast<uint32_t>(status.st_nlink);
  out.attr.uid = status.st_uid;
  out.attr.gid = status.st_gid;
  out.attr.blksize = static_cast<uint32_t>(status.st_blksize);
  return out;
}

void forget_all(const char* request, size_t length) {
  fuse_batch_forget_in batch;
  fuse_forget_one one;
  const size_t first = sizeof(fuse_in_header) + sizeof batch;
  if (length < first) return;
  std::memcpy(&batch, request + sizeof(fuse_in_header), sizeof batch);
  for (size_t i = 0; i < batch.count && first + (i + 1) * sizeof one <= length; ++i) {
    std::memcpy(&one, request + first + i * sizeof one, sizeof one);
    FuseNodes::instance().forgotten(one.nodeid);
  }
}

// Lets the kernel keep some of libfuse's answers: the attributes of the mountpoint, and the names
// in it, except that of the control directory.
void keep_more(const fuse_in_header& header, const char* request, size_t length) {
  if (header.opcode == FUSE_GETATTR) {
    FuseNodes::instance().keep_root();
    let_kernel_keep(header.unique, kMountpointValid);
  }
  if (header.opcode == FUSE_LOOKUP && length > sizeof header && request[sizeof header] != '.')
    let_kernel_keep(header.unique, kNameValid);
}

class Loop {
 public:
  Loop(const LoopLibrary& library, fuse_session* session, fuse_chan* channel,
       const DirectOperations& operations)
      : library_(library),
        session_(session),
        channel_(channel),
        operations_(operations),
        largest_(library.buffer_size(channel)) {}

  int run() {
    FuseNodes::instance().begin(library_.descriptor(channel_));
    FuseQuestions::instance().set_channel(library_.descriptor(channel_));
    const bool started = start();
    if (started) {
      std::unique_lock lock(mutex_);
      ended_.wait(lock, [&] { return threads_ == 0; });
      library_.reset(session_);
    }
    FuseQuestions::instance().set_channel(-1);
    FuseNodes::instance().end();
    return started ? 0 : -1;
  }

 private:
  bool start() {
    // Signals are for the threads that the program itself has started.
    const SignalsHeld held;
    const std::lock_guard lock(mutex_);
    pthread_t thread;
    const bool started = pthread_create(&thread, nullptr, &Loop::serve_on_thread, this) == 0;
    if (!started) return false;
    pthread_detach(thread);
    threads_++;
    idle_++;
    return true;
  }

  static void* serve_on_thread(void* loop) {
    static_cast<Loop*>(loop)->serve();
    return nullptr;
  }

  // A thread of the loop. While it serves a request, another thread must wait for the next one,
  // because a request may take any length of time.
  void serve() {
    const Buffer buffer(largest_);
    while (buffer.is_there() && !library_.exited(session_)) {
      fuse_chan* channel = channel_;
      const int length = library_.receive(&channel, buffer.request(), largest_);
      if (length == -EINTR || length == -EAGAIN) continue;
      if (length <= 0) break;
      // If no thread can be started, the existing ones must do.
      if (--idle_ == 0) (void)start();
      if (!serve_directly(buffer, static_cast<size_t>(length))) {
        pass_on(buffer.request(), static_cast<size_t>(length));
        idle_++;
      }
      if (is_surplus()) return end();
    }
    idle_--;
    end();
  }

  // Returns true if this thread no longer counts as waiting, because more than enough do. Enough
  // stay, however many threads ask at the same time.
  bool is_surplus() {
    int idle = idle_;
    while (idle > kMostIdle)
      if (idle_.compare_exchange_weak(idle, idle - 1)) return true;
    return false;
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (--threads_ == 0) ended_.notify_all();
  }

  // Returns false if libfuse must serve the request. Otherwise this thread counts as waiting again.
  bool serve_directly(const Buffer& buffer, size_t length) {
    fuse_in_header header;
    std::memcpy(&header, buffer.request(), sizeof header);
    const char* body = buffer.request() + sizeof header;
    // the channel does not pass shorter requests
    const size_t body_length = length - sizeof header;
    if (header.opcode == FUSE_INTERRUPT) {
      // No request here can be interrupted, and libfuse would search for requests that it has never
      // seen.
      idle_++;
      return true;
    }
    if (header.opcode == FUSE_GETATTR) {
      const auto found = operations_.status(header.nodeid);
      if (!found) return false;
      const fuse_attr_out out = attributes_of(*found);
      reply(header.unique, sizeof out, reinterpret_cast<const char*>(&out));
      return true;
    }
    if (header.opcode == FUSE_OPEN && body_length >= sizeof(fuse_open_in)) {
      fuse_open_in open;
      std::memcpy(&open, body, sizeof open);
      const auto opened = operations_.open(header.nodeid, open.flags, header.pid);
      if (!opened) return false;
      fuse_open_out out = {};
      out.fh = opened->fh;
      out.open_flags = opened->keep_cache ? FOPEN_KEEP_CACHE : 0;
      reply(header.unique, sizeof out, reinterpret_cast<const char*>(&out));
      return true;
    }
    if (header.opcode == FUSE_RELEASE && body_length >= sizeof(fuse_release_in)) {
      fuse_release_in release;
      std::memcpy(&release, body, sizeof release);
      if (!operations_.release(release.fh)) return false;
      reply(header.unique, 0, nullptr);
      return true;
    }
    if (header.opcode == FUSE_READ && body_length >= sizeof(fuse_read_in)) {
      fuse_read_in read;
      std::memcpy(&read, body, sizeof read);
      if (!operations_.knows(read.fh) || read.size > largest_) return false;
      const int count =
          operations_.read(read.fh, buffer.bytes(), read.size, read.offset, header.pid);
      reply(header.unique, count, buffer.bytes());
      return true;
    }
    if (header.opcode == FUSE_WRITE && body_length >= sizeof(fuse_write_in)) {
      fuse_write_in write;
      std::memcpy(&write, body, sizeof write);
      if (!operations_.knows(write.fh) || write.size > body_length - sizeof write) return false;
      const bool cached = write.write_flags & FUSE_WRITE_CACHE;
      const int written =
          operations_.write(write.fh, buffer.bytes(), write.size, write.offset, cached, header.pid);
      fuse_write_out out = {};
      out.size = static_cast<uint32_t>(written);
      reply(header.unique, written < 0 ? written : static_cast<int>(sizeof out),
            reinterpret_cast<const char*>(&out));
      return true;
    }
    if (header.opcode == FUSE_LSEEK && body_length >= sizeof(fuse_lseek_in)) {
      // libfuse does not know this request and would answer ENOSYS. Then the kernel would never ask
      // again, for any file.
      fuse_lseek_in seek;
      std::memcpy(&seek, body, sizeof seek);
      const int64_t found = operations_.seek(seek.fh, seek.offset, seek.whence);
      fuse_lseek_out out = {};
      out.offset = static_cast<uint64_t>(found);
      const int result = found < 0 ? static_cast<int>(found) : static_cast<int>(sizeof out);
      reply(header.unique, result, reinterpret_cast<const char*>(&out));
      return true;
    }
    return false;
  }

  void pass_on(char* request, size_t length) {
    fuse_in_header header;
    std::memcpy(&header, request, sizeof header);
    if (header.opcode == FUSE_FORGET) FuseNodes::instance().forgotten(header.nodeid);
    if (header.opcode == FUSE_BATCH_FORGET) forget_all(request, length);
    if (header.nodeid == FuseNodes::kRoot && DirectoryWatch::instance().is_active())
      keep_more(header, request, length);
    const FuseNodes::Question question(header.opcode == FUSE_GETATTR ? header.nodeid : 0);
    fuse_buf buffer = {};
    buffer.mem = request;
    buffer.size = length;
    library_.process_buf(session_, &buffer, channel_);
  }

  // `result`: the number of bytes at `body`, or a negative errno. It is no error if no process
  // waits for the answer any more (ENOENT).
  void reply(uint64_t unique, int result, const char* body) {
    fuse_out_header out = {};
    out.unique = unique;
    out.error = result < 0 ? result : 0;
    const size_t length = result < 0 ? 0 : static_cast<size_t>(result);
    out.len = static_cast<uint32_t>(sizeof out + length);
    const iovec parts[] = {{&out, sizeof out}, {const_cast<char*>(body), length}};
    // Increment this before the answer: the process that gets it may use this processor at once,
    // and send its next request before this thread continues. That must not start another thread.
    idle_++;
    (void)!writev(library_.descriptor(channel_), parts, length ? 2 : 1);
  }

  const LoopLibrary library_;
  fuse_session* const session_;
  fuse_chan* const channel_;
  const DirectOperations operations_;
  const size_t largest_;  // bytes; of a request

  std::atomic<int> idle_{0};  // threads that wait for a request

  std::mutex mutex_;  // guards the rest
  std::condition_variable ended_;
  int threads_ = 0;
};

}  // namespace

std::optional<int> run_fuse_loop(void* libfuse, fuse* fuse, const DirectOperations& operations) {
  LoopLibrary library;
  if (!load(libfuse, &library)) return std::nullopt;
  fuse_session* session = library.get_session(fuse);
  fuse_chan* channel = library.next_chan(session, nullptr);
  if (!channel) return std::nullopt;
  return Loop(library, session, channel, operations).run();
}

}  // namespace pcow::addon
