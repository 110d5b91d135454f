// The attach protocol between a mount and the monitors of its images. See docs/monitor.md.
//
// The socket is a unix socket of type SOCK_SEQPACKET. Each message is one packet: a header, then
// `length` bytes of text. Numbers are little-endian. The socket's path is the value of the extended
// attribute `user.pcow.attach` of every flat file of the mount. The path depends on the image
// directory alone, so that the next mount of the directory listens at the same path.
//
//   monitor                                   mount
//   kAttach  (descriptor of the flat file) ─▶
//                                          ◀─ kAttached (descriptors: the image, then its bases;
//                                             text: their paths), or kRefused
//   from here on the mount asks and the monitor answers, one request at a time:
//                                          ◀─ kPrepare, kCut, kCommit, kFinish, kAbort, kDelete,
//                                             kRename, kSync, kStatus
//   kDone or kFailed ──────────────────────▶
//   when nothing of a writable image is mapped any more, and the monitor has closed it:
//   kRelease ──────────────────────────────▶
//                                          ◀─ kReleased, when the mount has taken the image back.
//                                          The
//                                             monitor answers requests that arrive in between by
//                                             kFailed with ESHUTDOWN. Then it closes the
//                                             connection, and munmap(2) returns
//   after the mount died, to its successor:
//   kResume  (descriptor of the image) ────▶
//                                          ◀─ kAttached without descriptors, or kRefused
//   when the image's chain needs a base that was not handed over (for example, because a base of
//   the image has another base now): kWant ─────────────────────────────────▶
//                                          ◀─ kBases (descriptors: the bases as they are now; text:
//                                             their paths), which is a request
//   when the mount has a clean store (segment.h), and the image stands on a base:
//                                          ◀─ kStore (text: the size of the base's layer), a
//                                          request
//                                             that older monitors fail
//   kWantShared (slices that it needs) ────▶
//                                          ◀─ kShared (descriptor of the segment, the first time),
//                                             when the slices are filled, or cannot be. Without an
//                                             answer, and without the mount, the monitor makes
//                                             copies of its own
//
//   when the image stands on a lazy one:
//                                          ◀─ kMayFetch, a request that older monitors fail
//   kFetch (a block whose bytes are remote) ▶
//                                          ◀─ kFetched, when the block is filled, or cannot be: the
//                                             monitor asks again. Faults wait meanwhile
//
// The value of kAttached says whether the mount knows kWant, so that a monitor and a mount of
// different versions work together.
//
// A snapshot is kPrepare, kCut, kCommit, kFinish. Between kCut and kCommit the memory is frozen.
// For a cut across several images, the mount sends kCommit only when every kCut has been answered.
// If the connection ends in between, the monitor aborts. A connection that ends without kRelease
// means that the process has died, or the mount.
#pragma once

#include <cstdint>

namespace pcow::protocol {

inline constexpr uint32_t kMagic = 0x574f4350;  // "PCOW"
inline constexpr uint16_t kVersion = 1;
inline constexpr uint32_t kMaxText = 60000;  // bytes
inline constexpr int kMaxDescriptors = 253;  // of one message: the kernel's limit (SCM_MAX_FD)
inline constexpr uint32_t kMayWant = 1;      // value of kAttached: the mount answers kWant
inline constexpr char kAttribute[] = "user.pcow.attach";
// of the file of a snapshot: the id of its layer, a space, and the path of the socket
inline constexpr char kSnapshotAttribute[] = "user.pcow.attach-snapshot";
// of a flat file, too: Image::file_identity()
inline constexpr char kImageAttribute[] = "user.pcow.image";

enum class Kind : uint16_t {
  // value: 1 to write, 0 to read only. One descriptor: the open flat file, or file of a snapshot
  kAttach = 1,
  // value: 1. Text: the image's uuid. One descriptor: the image file, with the writer's lock
  kResume = 2,
  kAttached = 3,  // Text: the paths of the descriptors, each ended by a NUL. value: kMayWant, or 0
  kRefused = 4,   // value: an errno. Text: a sentence
  // Text: the snapshot's name; value: 1 for an automatic one. Writes dirty pages back, and makes
  // the new table and layer directory durable beside the old ones
  kPrepare = 5,
  kCut = 6,      // freezes the memory
  kCommit = 7,   // the new layer takes writes; the memory is no longer frozen
  kFinish = 8,   // returns when the snapshot is durable
  kAbort = 9,    // undoes kPrepare and kCut
  kDelete = 10,  // Text: a snapshot's name
  kStatus = 11,  // answered by kDone with JSON
  // 12 asked for Prometheus text in early versions. Now the mount makes it from the answer to
  // kStatus
  kDone = 13,      // Text: the answer, if there is one
  kFailed = 14,    // value: an errno. Text: a sentence
  kSync = 15,      // another process called fsync on the flat file
  kRelease = 16,   // id 0, value 0: the monitor has closed the image and given up its lock
  kReleased = 17,  // id 0, value 0: the mount has the image again
  // id 0, value 0: a base is missing. The mount answers with kBases; if it does not, the monitor
  // asks again
  kWant = 18,
  kBases = 19,  // Text: the paths of the descriptors, each ended by a NUL
  // Text: a snapshot's name and its new name, separated by a space, which no name contains
  kRename = 20,
  // Text: the size in bytes, decimal, of the layer that the image stands on, or of the snapshot. Its
  // content is in the clean store
  kStore = 21,
  // id 0, value: the first slice. Text: how many slices of its segment to fill from there on,
  // decimal; 0: none, only what is there is of interest
  kWantShared = 22,
  // id 0, value: the first slice of a kWantShared. At most one descriptor: its segment
  kShared = 23,
  // From now on the monitor may send kFetch
  kMayFetch = 24,
  // id 0, value: a number, not 0, of which no other is waiting. Text: the uuid of the image that
  // holds the block, the id of the layer, the number of the block, and the path of the image, each
  // but the last followed by a space
  kFetch = 25,
  // id 0, value: that number. Text: why it cannot be fetched; empty: it is there now
  kFetched = 26,
};

struct Header {
  uint32_t magic;
  uint16_t version;
  Kind kind;
  uint32_t id;      // of a request; its answer has the same
  uint32_t value;   // its meaning depends on the kind
  uint32_t length;  // bytes of text that follow
  uint32_t zero;
};
static_assert(sizeof(Header) == 24);

}  // namespace pcow::protocol
