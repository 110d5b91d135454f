#include "engine/error.h"

#include <cstring>

namespace pcow {

const char* code_name(Code code) {
  switch (code) {
    case Code::kInvalid: return "PCOW_INVALID";
    case Code::kExists: return "PCOW_EXISTS";
    case Code::kNotFound: return "PCOW_NOT_FOUND";
    case Code::kLocked: return "PCOW_LOCKED";
    case Code::kBusy: return "PCOW_BUSY";
    case Code::kInUse: return "PCOW_IN_USE";
    case Code::kNotAnImage: return "PCOW_NOT_AN_IMAGE";
    case Code::kUnsupported: return "PCOW_UNSUPPORTED";
    case Code::kCorrupt: return "PCOW_CORRUPT";
    case Code::kIo: return "PCOW_IO";
    case Code::kNoSpace: return "PCOW_NO_SPACE";
    case Code::kReadOnly: return "PCOW_READ_ONLY";
    case Code::kPermission: return "PCOW_PERMISSION";
    case Code::kTooLarge: return "PCOW_TOO_LARGE";
    case Code::kLimit: return "PCOW_LIMIT";
    case Code::kBaseMissing: return "PCOW_BASE_MISSING";
    case Code::kBaseChanged: return "PCOW_BASE_CHANGED";
    case Code::kBaseLoop: return "PCOW_BASE_LOOP";
    case Code::kBaseOutside: return "PCOW_BASE_OUTSIDE";
    case Code::kCancelled: return "PCOW_CANCELLED";
    case Code::kClosed: return "PCOW_CLOSED";
    case Code::kNoMemory: return "PCOW_NO_MEMORY";
    case Code::kRemote: return "PCOW_REMOTE";
  }
  return "PCOW_IO";
}

int code_errno(Code code) {
  switch (code) {
    case Code::kInvalid:
    case Code::kNotAnImage: return EINVAL;
    case Code::kExists: return EEXIST;
    case Code::kNotFound:
    case Code::kBaseMissing: return ENOENT;
    case Code::kLocked:
    case Code::kBusy:
    case Code::kInUse: return EBUSY;
    case Code::kUnsupported: return EOPNOTSUPP;
    case Code::kCorrupt:
    case Code::kIo: return EIO;
    case Code::kNoSpace: return ENOSPC;
    case Code::kReadOnly: return EROFS;
    case Code::kPermission: return EACCES;
    case Code::kTooLarge: return EFBIG;
    case Code::kLimit: return EMLINK;
    case Code::kBaseChanged: return ESTALE;
    case Code::kBaseLoop: return ELOOP;
    case Code::kBaseOutside: return EPERM;
    case Code::kCancelled: return ECANCELED;
    case Code::kClosed: return EBADF;
    case Code::kNoMemory: return ENOMEM;
    case Code::kRemote: return EAGAIN;
  }
  return EIO;
}

namespace {

Code code_of_errno(int err) {
  switch (err) {
    case ENOSPC:
    case EDQUOT: return Code::kNoSpace;
    case EACCES:
    case EPERM: return Code::kPermission;
    case ENOENT:
    case ENOTDIR: return Code::kNotFound;
    case EEXIST: return Code::kExists;
    case EROFS: return Code::kReadOnly;
    case EFBIG: return Code::kTooLarge;
    case ENOMEM: return Code::kNoMemory;
    case EOPNOTSUPP: return Code::kUnsupported;
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR: return Code::kInvalid;
    default: return Code::kIo;
  }
}

std::string text_of(int err) {
  char text[128];
  // The GNU strerror_r: thread-safe, and may return a constant instead of using the buffer.
  return strerror_r(err, text, sizeof text);
}

// What block devices (table blk_errors in the kernel's block/blk-core.c) and filesystems mean by an
// errno. null: the errno's usual text is right.
const char* disk_meaning(int err) {
  switch (err) {
    case ENODATA: return "a medium error: the disk can no longer read or store these sectors";
    case ETIMEDOUT: return "the disk did not answer in time";
    case ETIME: return "the disk gave up after its time limit";
    case ENOLINK: return "the connection to the disk is lost";
    case EREMOTEIO: return "the disk refused the request";
    case EBADE: return "another host has reserved the disk";
    case EILSEQ: return "the disk found a wrong checksum";
    case ENODEV:
    case ENXIO: return "the device does not exist";
    case EREMCHG:
    case EBUSY:
    case EAGAIN: return "the disk is busy, try again later";
    case ETOOMANYREFS:
    case EOVERFLOW: return "too many zones of the disk are in use";
    case EINVAL:
    case EOPNOTSUPP:
    case ENOSYS: return "the disk or the filesystem does not support this";
    case EUCLEAN: return "the filesystem is damaged, check it with fsck";
    case EBADMSG: return "the filesystem found a wrong checksum, check it with fsck";
    case ESHUTDOWN: return "the filesystem has shut down after an error";
    case ENOTCONN:
    case ECONNABORTED: return "the process that serves the filesystem has ended";
    case ESTALE: return "the file no longer exists";
    case ENOKEY:
    case EKEYREVOKED:
    case EKEYEXPIRED: return "the key of the encrypted file is not available";
    case ETXTBSY: return "the file is used for swapping or as a running program";
    default: return nullptr;
  }
}

}  // namespace

Error system_error(int err, const std::string& what) {
  return Error(code_of_errno(err), err, what + ": " + text_of(err));
}

Error disk_error(int err, const std::string& what) {
  const char* meaning = disk_meaning(err);
  if (!meaning) return system_error(err, what);
  return Error(code_of_errno(err), err, what + ": " + meaning + " (" + text_of(err) + ")");
}

}  // namespace pcow
