// The attach protocol between a mount and the monitors of its images, byte by byte. See docs/monitor.md.
//
// A SOCK_SEQPACKET unix socket; one packet a message: a header, then `length` bytes of text. Little-endian. The socket's
// path is the value of the extended attribute `user.pcow.attach` of every flat file of the mount; it depends on the image
// directory alone, so that the next mount of the directory listens at the same place.
//
//   monitor                                  mount
//   kAttach  (descriptor of the flat file) ─▶
//                                          ◀─ kAttached (descriptors: the image, then its bases; text: their paths), or
//                                             kRefused
//   from here on the mount asks and the monitor answers, one request at a time:
//                                          ◀─ kPrepare, kCut, kCommit, kFinish, kAbort, kDelete, kRename, kSync,
//                                             kStatus
//   kDone or kFailed ─▶
//   when nothing of a writable image is mapped any more, and the monitor has closed it:
//   kRelease ─▶
//                                          ◀─ kReleased, when the mount has taken the image back. The monitor answers
//                                             requests that came meanwhile by kFailed with ESHUTDOWN; then it closes
//                                             the connection, and munmap(2) returns
//   after the mount died, to its successor:
//   kResume  (descriptor of the image) ─────▶
//                                          ◀─ kAttached without descriptors, or kRefused
//   when the image's chain needs a base that was not handed over (a base of it has got another base, say):
//   kWant ──────────────────────────────────▶
//                                          ◀─ kBases (descriptors: the bases as they are now; text: their paths), a request
//
// kAttached says by its value whether the mount knows kWant: a monitor and a mount of different age get on.
//
// A snapshot is kPrepare, kCut, kCommit, kFinish. Between kCut and kCommit the memory is frozen: across several images
// the mount sends kCommit only when every kCut was answered. If the connection ends in between, the monitor aborts. A
// connection that ends without kRelease is the death of the process, or of the mount.
#pragma once

#include <cstdint>

namespace pcow::protocol {

inline constexpr uint32_t kMagic = 0x574f4350;  // "PCOW"
inline constexpr uint16_t kVersion = 1;
inline constexpr uint32_t kMaxText = 60000;  // bytes
inline constexpr int kMaxDescriptors = 253;  // of one message: the kernel's limit (SCM_MAX_FD)
inline constexpr uint32_t kMayWant = 1;      // value of kAttached: the mount answers kWant
inline constexpr char kAttribute[] = "user.pcow.attach";
inline constexpr char kImageAttribute[] = "user.pcow.image";  // of a flat file as well: Image::file_identity()

enum class Kind : uint16_t {
  kAttach = 1,    // value: 1 to write, 0 to read only. One descriptor: the open flat file
  kResume = 2,    // value: 1. Text: the image's uuid. One descriptor: the image file, with the writer's lock
  kAttached = 3,  // Text: the paths of the descriptors that come along, each ended by a NUL. value: kMayWant, or 0
  kRefused = 4,   // value: an errno. Text: a sentence
  kPrepare = 5,   // Text: the snapshot's name; value: 1 for an automatic one. Syncs, makes the new layer ready
  kCut = 6,       // freezes the memory
  kCommit = 7,    // the new layer takes writes; the memory goes on
  kFinish = 8,    // returns when the snapshot is durable
  kAbort = 9,     // undoes kPrepare and kCut
  kDelete = 10,   // Text: a snapshot's name
  kStatus = 11,   // answered by kDone with JSON
  // 12 asked for Prometheus text, which the mount makes of kStatus's answer now
  kDone = 13,      // Text: the answer, where there is one
  kFailed = 14,    // value: an errno. Text: a sentence
  kSync = 15,      // somebody else's fsync of the flat file
  kRelease = 16,   // id 0, value 0: the image is closed and its lock given up
  kReleased = 17,  // id 0, value 0: the mount has the image back
  kWant = 18,      // id 0, value 0: the image's bases are needed anew. kBases comes for it, or it is sent again
  kBases = 19,     // Text: the paths of the descriptors that come along, each ended by a NUL
  kRename = 20,    // Text: a snapshot's name and its new one, with a space between, which no name has
};

struct Header {
  uint32_t magic;
  uint16_t version;
  Kind kind;
  uint32_t id;      // of a request; its answer carries the same
  uint32_t value;   // by kind
  uint32_t length;  // bytes of text that follow
  uint32_t zero;
};
static_assert(sizeof(Header) == 24);

}  // namespace pcow::protocol
