#include "monitor/registry.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/xattr.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include "attach/system_calls.h"
#include "monitor/limits.h"
#include "monitor/log.h"
#include "monitor/threads.h"

namespace pcow {
namespace {

using footprint::OpenFile;

constexpr size_t kPage = 4096;

std::atomic<Registry*> registry{nullptr};

Registry::Outcome failed(int err) { return {err, MAP_FAILED}; }

// Reports the error to the operator: an errno alone has no text.
Registry::Outcome failed(const Error& error) {
  log_notice(error.message);
  return failed(error.err);
}

Registry::Outcome outcome_of(const Result<void>& result) {
  return result ? Registry::Outcome{} : failed(result.error());
}

}  // namespace

Registry& Registry::instance() {
  Registry* found = registry.load(std::memory_order_acquire);
  if (found) return *found;
  auto* made = new Registry;
  if (registry.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

void Registry::forget() { registry = nullptr; }

std::vector<Registry::Attached> Registry::all() {
  const std::lock_guard lock(attached_lock_);
  return attached_;
}

std::shared_ptr<Session> Registry::session_of(const OpenFile& file) {
  for (const Attached& each : all())
    if (std::find(each.files.begin(), each.files.end(), file) != each.files.end())
      return {each.attachment, &each.session()};
  return nullptr;
}

// The mount says which file contains the image. If a session works on a file with the same device
// and inode, it is the same image, whichever mount the flat file is in. With `changing` held.
std::shared_ptr<Session> Registry::learn(const OpenFile& file, int descriptor) {
  if (all().empty()) return nullptr;
  char text[64];
  const ssize_t count = fgetxattr(descriptor, protocol::kImageAttribute, text, sizeof text);
  if (count <= 0) return nullptr;
  {
    const std::lock_guard lock(attached_lock_);
    const auto same = std::find_if(attached_.begin(), attached_.end(), [&](const Attached& each) {
      return !each.session().is_snapshot() &&
             each.session().image().file_identity() ==
                 std::string_view(text, static_cast<size_t>(count));
    });
    if (same == attached_.end()) return nullptr;
    same->files.push_back(file);
  }
  publish();
  return session_of(file);
}

bool Registry::learn(const OpenFile& file, int descriptor, pid_t thread) {
  const protocol::Descriptor borrowed = threads::borrow(descriptor, thread);
  if (!borrowed) return false;
  const std::lock_guard one_by_one(changing_);
  return session_of(file) || learn(file, borrowed.number());
}

// Returns them in the order of their addresses, without gaps.
std::vector<Registry::Stretch> Registry::stretches(void* address, size_t length) {
  std::vector<Stretch> found;
  for (const Attached& each : all())
    for (const Session::Part& part : each.session().parts(address, length))
      found.push_back({each, part.address, part.length, part.offset, part.protection});
  std::sort(found.begin(), found.end(),
            [](const Stretch& a, const Stretch& b) { return a.address < b.address; });
  std::vector<Stretch> whole;
  char* at = static_cast<char*>(address);
  char* const end = at + length;
  for (Stretch& stretch : found) {
    if (at < stretch.address)
      whole.push_back({{}, at, static_cast<size_t>(stretch.address - at), 0, 0});
    at = stretch.address + stretch.length;
    whole.push_back(std::move(stretch));
  }
  if (at < end) whole.push_back({{}, at, static_cast<size_t>(end - at), 0, 0});
  return whole;
}

// Runs `call`, one system call that removes the mappings of the range, and may put others there. It
// must be one call: if the range were free for a moment, another thread's mmap could get it. With
// `changing` held. Meanwhile no fault of the sessions concerned is served, because the answer could
// go into the new mapping. `added`: a session whose mapping is put there.
template <typename Call>
Registry::Outcome Registry::replace_range(void* address, size_t length, const Call& call,
                                          const Addition* added) {
  char* const from = static_cast<char*>(address);
  char* const to = from + length;
  std::vector<Attached> concerned;
  for (Attached& each : all())
    if ((added && &each.session() == added->session) || each.session().overlaps(address, length))
      concerned.push_back(std::move(each));
  for (const Attached& each : concerned) each.session().hold();
  Outcome outcome;
  for (const Attached& each : concerned)
    if (auto ready = each.session().prepare_removal(from, to); !ready && !outcome.err)
      outcome = failed(ready.error());
  if (!outcome.err) outcome = call();
  if (!outcome.err)
    for (const Attached& each : concerned) each.session().forget_removed(from, to);
  if (!outcome.err && added)
    added->session->add_region(from, added->length, added->offset, added->protection);
  for (const Attached& each : concerned) each.session().let_go();
  return outcome;
}

Registry::Outcome Registry::attach(const Offer& offer, const OpenFile& file, int descriptor,
                                   bool write) {
  Offer found = offer;
  // The image was released after the caller looked, so its mount must be asked after all.
  if (found.socket.empty())
    if (const int unanswered = find_offer(descriptor, &found)) return failed(unanswered);
  if (found.socket.empty()) return failed(ENODATA);
  auto attachment =
      Attachment::attach(found.socket, descriptor, write, found.layer, process_limits());
  if (!attachment) {
    Error error = attachment.error();
    error.message = "cannot attach: " + error.message;
    return failed(error);
  }
  const std::lock_guard lock(attached_lock_);
  attached_.push_back({{file}, *attachment});
  return {};
}

Registry::Outcome Registry::map_flat_file(const Offer& offer, const OpenFile& file, int access,
                                          MapCall call) {
  const bool write = (call.protection & PROT_WRITE) != 0;
  if (access == O_WRONLY || (write && access != O_RDWR)) return failed(EACCES);
  const protocol::Descriptor descriptor = threads::borrow(call.descriptor, call.thread);
  if (!descriptor)
    return failed(system_error(errno, "the monitor cannot borrow the descriptor of a flat file"));
  const std::lock_guard one_by_one(changing_);
  std::shared_ptr<Session> session = session_of(file);
  if (!session) session = learn(file, descriptor.number());
  if (session && write && !session->writable())
    return failed(Error(Code::kBusy, session->image().info().path +
                                         " is mapped read-only in this process: unmap it first"));
  if (!session) {
    if (const Outcome attached = attach(offer, file, descriptor.number(), write); attached.err)
      return attached;
    session = session_of(file);
  }
  // The application's own flushes are durable only if the monitor maps with MAP_SYNC, too: mmap(2).
  const bool refused = (call.flags & MAP_SYNC) && !session->is_persistent();
  const Outcome mapped =
      refused ? failed(EOPNOTSUPP) : map_attached(session.get(), call, descriptor.number());
  session = nullptr;
  publish();
  let_go_of_idle();
  return mapped;
}

// The kernel makes its own mapping first: it checks the arguments of the call, finds the address,
// and keeps what lies beyond the end of the image (SIGBUS, as for any file). The session's mapping
// is put over the rest. With MAP_FIXED, both are made elsewhere and then moved.
Registry::Outcome Registry::map_attached(Session* session, const MapCall& call, int descriptor) {
  // This call must not read the flat file through its mount, nor lock it in memory.
  constexpr int kOmittedFlags = MAP_FIXED | MAP_POPULATE | MAP_LOCKED | MAP_SYNC;
  const auto offset = static_cast<uint64_t>(call.offset);
  char* const whole =
      static_cast<char*>(system_mmap(call.address, call.length, call.protection,
                                     call.flags & ~kOmittedFlags, descriptor, call.offset));
  if (whole == MAP_FAILED) return failed(errno);
  const uint64_t size = (session->size() + kPage - 1) / kPage * kPage;
  const size_t inside = offset < size ? std::min<uint64_t>(call.length, size - offset) : 0;
  const size_t beyond = call.length - inside;
  const bool fixed = (call.flags & MAP_FIXED) != 0;
  char* const target = fixed ? static_cast<char*>(call.address) : whole;
  const auto put_at_target = [&]() -> Outcome {
    if (inside)
      if (auto reserved = session->reserve_at(target, inside, call.protection); !reserved)
        return failed(reserved.error());
    if (fixed && beyond &&
        system_mremap(whole + inside, beyond, beyond, MREMAP_MAYMOVE | MREMAP_FIXED,
                      target + inside) == MAP_FAILED)
      return failed(errno);
    return {0, target};
  };
  const Addition added = {session, inside, offset, call.protection};
  const Outcome outcome =
      replace_range(target, call.length, put_at_target, inside ? &added : nullptr);
  const size_t left = outcome.err ? call.length : fixed ? inside : 0;  // of the kernel's own
  if (left) system_munmap(whole, left);
  return outcome;
}

Registry::Outcome Registry::map_over(const MapCall& call) {
  const std::lock_guard one_by_one(changing_);
  protocol::Descriptor descriptor;
  if (!(call.flags & MAP_ANONYMOUS)) {
    descriptor = threads::borrow(call.descriptor, call.thread);
    if (!descriptor) return failed(errno);
  }
  const Outcome outcome = replace_range(
      call.address, call.length,
      [&]() -> Outcome {
        void* const found = system_mmap(call.address, call.length, call.protection, call.flags,
                                        descriptor.number(), call.offset);
        return found == MAP_FAILED ? failed(errno) : Outcome{0, found};
      },
      nullptr);
  publish();
  let_go_of_idle();
  return outcome;
}

Registry::Outcome Registry::move_over(void* old, size_t old_length, size_t length, int flags,
                                      void* target) {
  const std::lock_guard one_by_one(changing_);
  const Outcome outcome = replace_range(
      target, length,
      [&]() -> Outcome {
        void* const found = system_mremap(old, old_length, length, flags, target);
        return found == MAP_FAILED ? failed(errno) : Outcome{0, found};
      },
      nullptr);
  publish();
  let_go_of_idle();
  return outcome;
}

Registry::Outcome Registry::unmap(void* address, size_t length) {
  const std::lock_guard one_by_one(changing_);
  const Outcome outcome = replace_range(
      address, length,
      [&]() -> Outcome { return system_munmap(address, length) < 0 ? failed(errno) : Outcome{}; },
      nullptr);
  publish();
  let_go_of_idle();
  return outcome;
}

Registry::Outcome Registry::protect(void* address, size_t length, int protection) {
  const std::lock_guard one_by_one(changing_);
  std::vector<Attached> concerned;
  for (Attached& each : all())
    if (each.session().overlaps(address, length)) concerned.push_back(std::move(each));
  for (const Attached& each : concerned)
    if (auto allowed = each.session().check_protection(protection); !allowed)
      return failed(allowed.error());
  // The kernel checks the arguments, and changes the parts of the range around our mappings.
  if (system_mprotect(address, length, protection) < 0) return failed(errno);
  Outcome outcome;
  for (const Attached& each : concerned)
    if (auto done = each.session().protect(address, length, protection); !done && !outcome.err)
      outcome = failed(done.error());
  publish();
  return outcome;
}

Registry::Outcome Registry::sync_range(void* address, size_t length, int flags) {
  Outcome outcome;
  std::vector<Attachment*> synced;
  for (const Stretch& stretch : stretches(address, length)) {
    Attachment* const attachment = stretch.attached.attachment.get();
    // The kernel checks the arguments. For an image, MS_SYNC is done by the engine, once for each
    // image.
    const int asked = attachment && !(flags & MS_ASYNC) ? flags & ~MS_SYNC : flags;
    if (syscall(SYS_msync, stretch.address, stretch.length, asked) < 0 && !outcome.err)
      outcome = failed(errno);
    if (!attachment || !(flags & MS_SYNC) || std::count(synced.begin(), synced.end(), attachment))
      continue;
    synced.push_back(attachment);
    if (auto done = attachment->session().sync(); !done && !outcome.err)
      outcome = failed(done.error());
  }
  return outcome;
}

Registry::Outcome Registry::remove_range(void* address, size_t length) {
  Outcome outcome;
  for (const Stretch& stretch : stretches(address, length)) {
    if (outcome.err && outcome.err != ENOMEM) break;
    if (!stretch.attached.attachment) {
      if (system_madvise(stretch.address, stretch.length, MADV_REMOVE) < 0) outcome = failed(errno);
    } else if (!(stretch.protection & PROT_WRITE)) {
      outcome = failed(EACCES);  // madvise(2): not a shared writable mapping
    } else if (auto done = stretch.attached.session().discard(stretch.offset, stretch.length);
               !done) {
      outcome = failed(done.error());
    }
  }
  return outcome;
}

bool Registry::sync_file(const OpenFile& file, Outcome* outcome) {
  const auto session = session_of(file);
  if (!session) return false;
  const auto done = session->sync();
  // released in the meantime: its mount has it
  if (!done && done.error().code == Code::kClosed) return false;
  *outcome = outcome_of(done);
  return true;
}

bool Registry::discard_file(const OpenFile& file, uint64_t offset, uint64_t length,
                            Outcome* outcome) {
  const auto session = session_of(file);
  if (!session) return false;
  const uint64_t size = session->image().size();
  const uint64_t from = std::min(offset, size);
  const auto done = session->discard(from, std::min(length, size - from));
  if (!done && done.error().code == Code::kClosed) return false;
  *outcome = outcome_of(done);
  return true;
}

void Registry::sync_all() {
  for (const Attached& each : all()) (void)outcome_of(each.session().sync());
}

void Registry::publish() {
  std::vector<footprint::Range> ranges;
  std::vector<OpenFile> files;
  for (const Attached& each : all()) {
    files.insert(files.end(), each.files.begin(), each.files.end());
    for (const Session::Part& part : each.session().all_parts()) {
      const auto from = reinterpret_cast<uintptr_t>(part.address);
      ranges.push_back({from, from + part.length});
    }
  }
  footprint::publish(std::move(ranges), files);
}

// Detaches images without mappings. When it returns, their mounts have them again. With `changing`
// held, and the range already free, because this may take long.
void Registry::let_go_of_idle() {
  std::vector<Attached> idle;
  for (Attached& each : all())
    if (each.session().is_idle()) idle.push_back(std::move(each));
  if (idle.empty()) return;
  {
    const std::lock_guard lock(attached_lock_);
    std::erase_if(attached_, [&](const Attached& each) {
      return std::any_of(idle.begin(), idle.end(), [&](const Attached& other) {
        return other.attachment == each.attachment;
      });
    });
  }
  publish();
  for (const Attached& each : idle) each.attachment->detach();
}

}  // namespace pcow
