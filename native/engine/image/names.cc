#include "engine/image/names.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "engine/disk/file.h"
#include "engine/disk/needs.h"
#include "engine/format/superblock.h"
#include "engine/image/locking.h"
#include "engine/rules.h"

namespace pcow {
namespace {

constexpr size_t kDraftNameLength =
    200;  // bytes of the file's name that the draft's name contains, so that it is never too long

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return number_; }
  int release() {
    const int number = number_;
    number_ = -1;
    return number;
  }

 private:
  int number_;
};

size_t name_at(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? 0 : slash + 1;
}

std::string directory_part(const std::string& path) {
  return name_at(path) ? path.substr(0, name_at(path)) : ".";
}

Result<void> sync_path(const std::string& path, int flags) {
  const Descriptor descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
  if (descriptor.get() < 0) return system_error(errno, "cannot open " + path);
  if (fsync(descriptor.get()) < 0) return system_error(errno, "cannot sync " + path);
  return {};
}

// For filesystems that cannot rename without replacing. Returns an errno, or 0.
int rename_by_link(const std::string& draft, const std::string& name) {
  if (link(draft.c_str(), name.c_str()) == 0) return unlink(draft.c_str()) == 0 ? 0 : errno;
  if (errno != EPERM && errno != EOPNOTSUPP) return errno;
  // The filesystem has no hard links, either: an empty file reserves the name first.
  const Descriptor taken(open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (taken.get() < 0) return errno;
  return rename(draft.c_str(), name.c_str()) == 0 ? 0 : errno;
}

int rename_without_replacing(const std::string& draft, const std::string& name) {
  if (renameat2(AT_FDCWD, draft.c_str(), AT_FDCWD, name.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) return errno;
  return rename_by_link(draft, name);
}

// true: this process now holds the lock. false: another one does.
Result<bool> take(int descriptor, LockByte byte, bool exclusive, const std::string& path) {
  struct flock lock = {};
  lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = 1;
  if (fcntl(descriptor, F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES) return false;
  if (errno == ENOLCK || errno == EOPNOTSUPP || errno == ENOSYS)
    return lacking(path, "has no locks");
  return system_error(errno, "cannot lock " + path);
}

// Whether the open file still has this name.
bool is_named(int descriptor, const std::string& path) {
  struct stat own, named;
  return fstat(descriptor, &own) == 0 && stat(path.c_str(), &named) == 0 &&
         own.st_dev == named.st_dev && own.st_ino == named.st_ino;
}

}  // namespace

Result<void> sync_directory_of(const std::string& path) {
  return keeps(Rule::kNameBeforeReturn) ? sync_path(directory_part(path), O_DIRECTORY)
                                        : Result<void>();
}

Result<void> give_name(const std::string& draft, const std::string& name, bool replace) {
  if (keeps(Rule::kFileBeforeName)) PCOW_TRY(sync_path(draft, 0));
  const int err = !replace                                  ? rename_without_replacing(draft, name)
                  : rename(draft.c_str(), name.c_str()) < 0 ? errno
                                                            : 0;
  if (err == EEXIST) return Error(Code::kExists, name + " exists already");
  if (err) return system_error(err, "cannot create " + name);
  PCOW_TRY(sync_directory_of(name));
  return directory_part(draft) == directory_part(name) ? Result<void>() : sync_directory_of(draft);
}

Result<void> add_name(const std::string& name, const std::string& second) {
  if (link(name.c_str(), second.c_str()) < 0) {
    if (errno != EEXIST) return system_error(errno, "cannot give " + name + " the name " + second);
    struct stat own, other;
    const bool has_both = lstat(name.c_str(), &own) == 0 && lstat(second.c_str(), &other) == 0 &&
                          own.st_dev == other.st_dev && own.st_ino == other.st_ino;
    if (!has_both) return Error(Code::kExists, second + " exists already");
  }
  return sync_directory_of(second);
}

Result<void> remove_name(const std::string& name) {
  if (unlink(name.c_str()) < 0) return system_error(errno, "cannot remove " + name);
  return sync_directory_of(name);
}

Result<int> lock_file(const std::string& path, LockByte byte, bool exclusive) {
  for (;;) {
    const int access = exclusive ? O_RDWR : O_RDONLY;
    Descriptor file(open(path.c_str(), access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (file.get() < 0) return system_error(errno, "cannot open " + path);
    struct stat status;
    if (fstat(file.get(), &status) < 0)
      return system_error(errno, "cannot get the status of " + path);
    if (!S_ISREG(status.st_mode)) return Error(Code::kNotAnImage, path + " is not a regular file");
    auto taken = take(file.get(), byte, exclusive, path);
    if (!taken) return taken.error();
    if (!*taken) {
      if (byte != LockByte::kWriter) return -1;
      auto held = File::adopt(path, file.get(), nullptr);
      return held ? locked_by(**held) : held.error();
    }
    if (is_named(file.get(), path)) return file.release();
    // The file was replaced between the two calls, or has lost its name: look again at the file
    // that has the name now.
  }
}

Result<Draft> make_draft(const std::string& name) {
  const std::string base =
      directory_part(name) == "." && name_at(name) == 0 ? "" : directory_part(name);
  for (;;) {
    Draft draft;
    draft.path = base + "." + name.substr(name_at(name), kDraftNameLength) + "." +
                 format_uuid(random_uuid()) + ".pcow-draft";
    Descriptor file(open(draft.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.get() < 0) return system_error(errno, "cannot create " + name);
    auto taken = take(file.get(), LockByte::kDraft, true, draft.path);
    if (!taken || !*taken || !is_named(file.get(), draft.path)) {
      // Another process removed it as a leftover before it was locked.
      unlink(draft.path.c_str());
      if (!taken) return taken.error();
      continue;
    }
    draft.descriptor = file.release();
    return draft;
  }
}

Error by_name(Error error, const std::string& draft, const std::string& name) {
  const auto at = error.message.find(draft);
  if (at != std::string::npos) error.message.replace(at, draft.size(), name);
  return error;
}

Result<void> check_directory(const std::string& directory) {
  auto draft = make_draft(directory + "/needs");
  if (!draft) return draft.error();
  auto outcome = check_needs(draft->path);
  unlink(draft->path.c_str());
  close(draft->descriptor);
  return outcome ? outcome : by_name(outcome.error(), draft->path, directory);
}

Result<bool> remove_left_draft(const std::string& path) {
  const Descriptor file(
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (file.get() < 0)
    return errno == ENOENT ? Result<bool>(false) : system_error(errno, "cannot open " + path);
  auto taken = take(file.get(), LockByte::kDraft, false, path);
  if (!taken || !*taken || !is_named(file.get(), path)) return taken ? Result<bool>(false) : taken;
  if (unlink(path.c_str()) < 0) return system_error(errno, "cannot remove " + path);
  return true;
}

}  // namespace pcow
