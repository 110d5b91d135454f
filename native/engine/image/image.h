// One image: a file with a tree of layers, and the bases that it stands on. See docs/format.md.
//
// Threads: every method of Image may be called from any thread at the same time, except that close() must come last.
// Reads, writes, discards and syncs run side by side; changes of structure (snapshot, rollback, rename, remove, resize, close)
// follow one another, and only their short final step keeps the others waiting.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"

namespace pcow {

class FileObserver;
class ImageState;
class PendingState;
class View;
struct ScrubReport;

struct BaseSpec {
  std::string path;      // of the base image, as the caller gives it
  std::string snapshot;  // its name, or empty where `layer` is given
  uint64_t layer = 0;    // id of a frozen layer; 0: by name
};

struct CreateOptions {
  uint64_t size = 0;        // bytes, a multiple of 4096; 0 with a base: the base layer's size
  uint32_t block_size = 0;  // bytes; 0: the base's, or 65536
  bool into = false;        // the path is that of an empty draft (names.h), which is filled as it lies
  bool has_base = false;
  BaseSpec base;
};

// Makes a new image file. It appears under its name only when complete and durable.
Result<void> create_image(const std::string& path, const CreateOptions& options);

// A file of a chain that somebody else has opened for us.
struct GivenFile {
  std::string path;
  int descriptor;  // stays the caller's: a duplicate is taken before the call returns
};

struct OpenOptions {
  bool write = false;     // be the one writer: takes the lock, or fails with kLocked
  std::string base_root;  // when not empty, bases must lie in this directory (kBaseOutside)
  // The bases are left alone, even if they are not there: for set_base() and close() only.
  bool without_bases = false;
  // Open descriptors to be used in place of paths (which need not be accessible): the image's, then its bases' in any order.
  // To write, the image's must carry the writer's lock; it goes over to us. Should the chain need another file later, that is
  // kBaseMissing until give_bases() brings it.
  std::vector<GivenFile> given;
  FileObserver* observer = nullptr;  // sees every file operation; outlives the image (tests)
};

struct LayerRef {
  std::string path;      // of the image file that holds the layer
  std::string snapshot;  // empty: the active layer, or one without a name
  uint64_t layer = 0;    // its id in that file
};

struct Holder {
  uint32_t pid = 0;
  uint64_t start_time = 0;  // field 22 of /proc/PID/stat, clock ticks since boot
  std::string command;
};

struct LastError {
  Error error;
  int64_t time_ns;  // since the epoch
};

struct ImageInfo {
  std::string path;
  std::string uuid;  // 8-4-4-4-12 hex digits
  uint32_t format_version = 0;
  uint64_t size = 0;            // bytes of the active layer
  uint32_t block_size = 0;      // bytes
  uint32_t sub_block_size = 0;  // bytes
  uint64_t file_size = 0;       // bytes, holes included
  uint64_t disk_use = 0;        // bytes, st_blocks * 512
  bool clean = false;           // what the superblock said when it was opened or last read
  bool writable = false;
  uint64_t generation = 0;
  uint64_t snapshots = 0;
  bool has_base = false;
  std::string base_path;      // as stored
  std::string base_resolved;  // absolute
  std::string base_uuid;
  uint64_t base_layer = 0;
  std::string base_snapshot;    // empty where that layer has no name
  std::vector<LayerRef> chain;  // active layer first
  bool has_holder = false;      // somebody alive has it open for writing
  Holder holder;
  bool has_opener = false;  // it is not clean: who has it open for writing, or was the last one and has died
  Holder opener;
  std::optional<LastError> last_error;  // of the last operation that failed on this opening
  bool persistent = false;              // its file counts as one in persistent memory (docs/format.md)
  // How often this opening has called write(2), or fdatasync(2) and the like, for the image's file.
  uint64_t kernel_writes = 0;
  uint64_t kernel_syncs = 0;
};

// Of a snapshot that is received from another image: what it shares with that one. Absent: its own. Every time is a time,
// that of 1970 too; 0 is not an identity (docs/format.md).
struct SnapshotOrigin {
  std::optional<uint64_t> identity;
  std::optional<int64_t> time_ns;
};

struct SnapshotInfo {
  std::string name;
  uint64_t id = 0;
  uint64_t identity = 0;  // of the content: the same number in whatever image it was sent to
  std::string parent;     // name; empty at the root
  int64_t time_ns = 0;    // since the epoch
  uint64_t size = 0;      // bytes
  uint64_t children = 0;  // layers of this image that stand directly on it, the active one included
  bool automatic = false;
  bool current = false;  // the active layer stands directly on it
  uint64_t data = 0;     // bytes that this layer itself holds
};

// One layer of an image's tree, hidden ones and the active one included.
struct LayerInfo {
  uint64_t id = 0;
  uint64_t parent = 0;  // id; 0: a root
  std::string name;     // empty: the active layer, or a hidden one
  bool hidden = false;
  bool active = false;
  uint64_t identity = 0;  // of the content; of the active layer 0
  int64_t time_ns = 0;    // since the epoch
  uint64_t size = 0;      // bytes
};

// A run of the active layer's own bytes that are neighbours in the file, too.
struct Extent {
  uint64_t offset = 0;       // bytes, in the image
  uint64_t length = 0;       // bytes; 0: none
  uint64_t file_offset = 0;  // bytes, in the image's file
};

// What a range of an image is: bytes in some file, zeros that a layer holds, or nothing anywhere (which reads as zeros).
enum class ExtentKind { kData, kZero, kHole };

// A range that one layer holds, as Image::map finds it. (Bytes of a kData range may be zeros all the same.)
struct MapExtent {
  uint64_t offset = 0;  // bytes, in the image
  uint64_t length = 0;  // bytes
  ExtentKind kind = ExtentKind::kHole;
  uint64_t depth = 0;        // of the layer that holds it, in the chain: 0 is the one that was asked for. Not of a hole
  uint64_t file_offset = 0;  // bytes, in that layer's file; of kData only
};

struct ExtentBatch {
  std::vector<MapExtent> extents;  // ascending
  uint64_t next = 0;               // where the next batch begins, bytes; `size` at the end
  uint64_t size = 0;               // bytes of the layer that was asked for
  std::vector<LayerRef> chain;     // of it, itself first: what depths count
  // Stands for that chain, file by file and layer by layer. Depths of two batches count the same layers only where it is equal.
  uint64_t chain_state = 0;
};

// Layers of a chain by their depth, `end` excluded.
struct DepthRange {
  uint64_t first = 0;
  uint64_t end = UINT64_MAX;
};

// Bytes that one fault maps at most; a run of so many may be one huge page.
inline constexpr uint64_t kLargestRun = uint64_t{2} << 20;

// What a monitor knows about the surroundings of a fault.
struct FaultHint {
  uint64_t ahead = 0;        // bytes that may be allocated beyond it, because its writer goes on from there
  bool whole_block = false;  // worth a copy of the whole block at its first write
};

// What a fault needed, for statistics.
struct FaultWork {
  bool expanded = false;  // space was allocated where nothing lay below
  bool copied = false;    // something was copied from below
  uint64_t copied_bytes = 0;
};

// Called from the working thread; false cancels: what was done stays sound.
using Progress = std::function<bool(uint64_t done, uint64_t total)>;

class Image {
 public:
  // Fails with kNotAnImage, kUnsupported, kCorrupt, kLocked, kBase…, kPermission, kIo, …
  static Result<std::unique_ptr<Image>> open(const std::string& path, const OpenOptions& options);
  ~Image();  // closes; an error of the last sync is lost, so call close() where it matters
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  ImageInfo info() const;
  // Oldest first, hidden layers left out. `with_data` counts each layer's bytes, which reads its table.
  Result<std::vector<SnapshotInfo>> snapshots(bool with_data) const;
  // One of them, its bytes not counted. kNotFound.
  Result<SnapshotInfo> snapshot_info(const std::string& name) const;
  Result<std::vector<std::string>> snapshot_names() const;  // in the same order
  // The whole tree at one moment, by ascending ids: the active layer last.
  Result<std::vector<LayerInfo>> layers() const;
  uint64_t size() const;  // bytes of the active layer
  // "DEVICE:INODE" of the image file, decimal, as stat(2) has them; empty where that fails.
  std::string file_identity() const;
  // Grows whenever what a reader of the active layer would see may have changed without a write (rollback).
  uint64_t content_generation() const;

  // A frozen layer for reading, by name or id. It stays readable until it is let go; deleting the snapshot makes its
  // later reads fail with kNotFound.
  Result<std::shared_ptr<View>> view(const std::string& snapshot) const;
  // Any layer by its id, for whoever reads for long: an id means one layer for ever, a name or "the active layer" may mean another
  // one by the next call. The active layer stays readable after a snapshot has frozen it, and a deleted one as long as
  // several layers stand on it (nothing is merged then). Otherwise kNotFound.
  Result<std::shared_ptr<View>> view_of_layer(uint64_t layer) const;
  uint64_t view_size(const View& view) const;

  // Reads the active layer (`view` null) or a frozen one. Returns the bytes read: short only at the end.
  Result<size_t> read(const View* view, uint64_t offset, void* buffer, size_t length) const;
  // The layers that the active layer (`view` null) or a frozen one reads from, itself first.
  Result<std::vector<LayerRef>> chain(const View* view) const;
  // Where the bytes of the active layer (`view` null) or of a frozen one are, from `offset` on: 0, then the `next` of the batch
  // before. With fewer depths than all, a hole is what none of these layers holds. While somebody writes, each batch is right
  // for a moment of its own.
  Result<ExtentBatch> map(const View* view, uint64_t offset, DepthRange depths) const;
  // The ranges of `to` that may differ from `from` (null: the active layer), by sub-blocks; elsewhere the two read the same.
  // What one of them has behind the end of the other is not compared with anything.
  Result<ExtentBatch> changes(const View* from, const View* to, uint64_t offset) const;
  // The ranges that the layer and those below it in this file hold: what its content differs in from that of the base, by sub-blocks.
  Result<ExtentBatch> changes_to_base(const View* to, uint64_t offset) const;
  // All or an error; after an error any part may have been written, as with write(2).
  Result<void> write(uint64_t offset, const void* buffer, size_t length);
  // The range reads as zeros afterwards. Whole blocks go back to the free space.
  Result<void> discard(uint64_t offset, uint64_t length);
  // All that was written before the call is durable afterwards. A failure is remembered: every later sync fails too.
  Result<void> sync();

  // Freezes the active layer under a name. Durable on return.
  Result<void> snapshot(const std::string& name, const SnapshotOrigin& origin = {});
  // The same for several images at one moment. Images may be given in any order, each once.
  static Result<void> snapshot_together(const std::vector<Image*>& images, const std::string& name);
  // A new empty active layer on that snapshot; what the old active layer held is gone. The caller sees to it that
  // nobody has the image mapped.
  Result<void> rollback(const std::string& name);
  // Gives a snapshot another name. It stays the same layer: views of it, and images that stand on it, do not notice. An automatic
  // one is one like any other from then on. Durable on return. kNotFound, kExists, kInvalid of `to`.
  Result<void> rename_snapshot(const std::string& from, const std::string& to);
  // Deletes a snapshot: merges it into its only child, drops it where it has none, hides it where it has several.
  Result<void> remove(const std::string& name, const Progress& progress);
  // Gives the active layer `size` bytes. Fewer than it has only with `shrink`, and never fewer than what it stands on has;
  // the caller sees to it that nobody has the image mapped then.
  Result<void> resize(uint64_t size, bool shrink = false);
  // The id of a frozen layer with the present content: the newest where the active layer is empty, otherwise a new
  // automatic snapshot named `name`.
  Result<uint64_t> freeze_for_clone(const std::string& name);
  Result<uint64_t> layer_id(const std::string& snapshot) const;  // empty: of the active layer
  // Points the image at another base without looking at the content (unsafe rebase). An empty path: no base.
  Result<void> set_base(const BaseSpec& base, bool has_base);
  // Points the image at another base, or at none, and takes in what the two hold differently: nobody sees a change.
  Result<void> rebase(const BaseSpec& base, bool has_base, const Progress& progress);
  // Moves what this image has written into its base, `base`, as a new snapshot there called `name`, and stands on that,
  // empty, afterwards. Returns whether the base's own content went along: it does where the base has written nothing
  // since; the caller sees to it that nobody has the base mapped then. The image itself may be in use.
  Result<bool> commit_into(Image* base, const std::string& name, bool automatic, const Progress& progress);
  // Gives back blocks that hold nothing but zeros, of all layers.
  Result<void> compact(const Progress& progress);

  // Checksums of what frozen layers hold, where they have none. Works side by side with everything else.
  Result<void> add_checksums(const Progress& progress);
  // Takes them all away: what is damaged reads as it lies on the disk from then on.
  Result<void> remove_checksums();
  // Reads all that has checksums from the disk. Fails where that could not be completed, not for what it finds.
  Result<ScrubReport> scrub(const Progress& progress) const;

  // For a monitor, which maps the image's own blocks into memory. One thread at a time calls these
  // four.
  //
  // Returns the run of own bytes around `offset` that may be mapped for writing: at most the 2 MiB
  // around it, within its chunk.
  Result<Extent> held(uint64_t offset) const;
  // Ensures that the active layer holds the sub-block at `offset`, with disk space. Returns the range
  // that this call made the layer's own, or, if the layer held it already, the run that held() returns.
  // If no lower layer holds anything there, up to `hint.ahead` more bytes are allocated. Otherwise the
  // first write to a block copies one sub-block, and the next one completes the block. If the disk is
  // full (kNoSpace), nothing changes.
  Result<Extent> make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work);
  // Allocates up to `length` bytes from `offset` on, before a writer needs them. Stops at the first
  // block that any layer holds.
  Result<void> allocate_ahead(uint64_t offset, uint64_t length);
  // Copies to every block of the chunk at `offset` what lower layers hold, so that the chunk can be
  // mapped in few pieces.
  Result<void> complete_chunk(uint64_t offset, FaultWork* work);
  // The offset in the file of the active layer's own byte at `offset`; 0 if the layer does not hold it.
  uint64_t file_offset(uint64_t offset) const;
  int descriptor() const;  // of the image's file: what extents are mapped from

  // For an image that was opened by given descriptors: those of its bases' files as the chain is now.
  Result<void> give_bases(const std::vector<GivenFile>& bases);

  // Syncs, sets the clean flag, gives up the lock. Later calls fail with kClosed.
  Result<void> close();

 private:
  friend class PendingSnapshot;
  explicit Image(std::unique_ptr<ImageState> state);
  std::unique_ptr<ImageState> state_;
};

// A snapshot in steps, all on one thread. Until commit() the destructor undoes it.
class PendingSnapshot {
 public:
  // Syncs, and makes the new structure durable beside the old one. Other changes of structure wait from here on.
  static Result<std::unique_ptr<PendingSnapshot>> prepare(Image* image, const std::string& name, bool automatic,
                                                          const SnapshotOrigin& origin = {});
  // Keeps reads, writes and discards out. Must be followed by commit(), or by the destructor.
  void close_gate();
  // The moment: from here on the new active layer takes writes. Opens the gate.
  Result<void> commit();
  // Returns when the snapshot is durable.
  Result<void> finish();
  ~PendingSnapshot();

 private:
  explicit PendingSnapshot(std::unique_ptr<PendingState> state);
  std::unique_ptr<PendingState> state_;
};

}  // namespace pcow
