// One image: a file with a tree of layers, and the bases that it stands on. See docs/format.md.
//
// Threads: any thread may call any method of Image at any time, except that close() must come last.
// Reads, writes, discards and syncs run concurrently. Changes of structure (snapshot, rollback,
// rename, remove, resize, close) run one after another, and only their short final step makes other
// calls wait.
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
class MoveState;
class PendingState;
class View;
struct ScrubReport;

struct BaseSpec {
  std::string path;      // of the base image, as the caller gave it
  std::string snapshot;  // its name, or empty if `layer` is given
  uint64_t layer = 0;    // id of a frozen layer; 0: by name
};

struct CreateOptions {
  uint64_t size = 0;        // bytes, a multiple of 4096; 0 with a base: the base layer's size
  uint32_t block_size = 0;  // bytes; 0: the base's, or 65536
  // The path is that of an empty draft (names.h), which is filled in place.
  bool into = false;
  bool has_base = false;
  BaseSpec base;
};

// Creates an image file. It appears under its name only when it is complete and durable.
Result<void> create_image(const std::string& path, const CreateOptions& options);

// A file of a chain that the caller has opened for the engine.
struct GivenFile {
  std::string path;
  int descriptor;  // remains the caller's: the call duplicates it
};

struct OpenOptions {
  bool write = false;     // as the only writer: takes the lock, or fails with kLocked
  std::string base_root;  // if not empty, bases must be in this directory (kBaseOutside)
  // Bases are not opened, even if they exist: only for set_base() and close().
  bool without_bases = false;
  // Open descriptors that are used instead of paths (which need not be accessible): the image's,
  // then those of its bases in any order. For writing, the image's descriptor must hold the
  // writer's lock, which the Image takes over. If the chain needs another file later, operations
  // fail with kBaseMissing until give_bases() provides it.
  std::vector<GivenFile> given;
  // Sees every file operation, and must outlive the image (tests).
  FileObserver* observer = nullptr;
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
  std::string host;  // if it is another one than this; "?": older software did not say which
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
  bool lazy = false;            // it has a source for remote bytes
  bool stands_on_lazy = false;  // one of its bases has a source
  uint64_t disk_use = 0;        // bytes, st_blocks * 512
  bool clean = false;           // as the superblock said when the image was opened or last read
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
  bool has_holder = false;      // a living process has it open for writing
  Holder holder;
  // The image is not clean: `opener` has it open for writing, or was its last writer and has died.
  bool has_opener = false;
  Holder opener;
  std::optional<LastError> last_error;  // of the last operation that failed on this opening
  // Its file counts as one in persistent memory (docs/format.md).
  bool persistent = false;
  // How often this opening has called write(2), and fdatasync(2) or similar calls, for the image's
  // file.
  uint64_t kernel_writes = 0;
  uint64_t kernel_syncs = 0;
};

// Of a snapshot that is received from another image: what it has in common with the original. An
// absent field gets a new value. Every value of time is valid, also 0 (1970); 0 is not an identity
// (docs/format.md).
struct SnapshotOrigin {
  std::optional<uint64_t> identity;
  std::optional<int64_t> time_ns;
};

struct SnapshotInfo {
  std::string name;
  uint64_t id = 0;
  uint64_t identity = 0;  // of the content: equal in all images to which it was sent
  std::string parent;     // its name; empty for a root
  int64_t time_ns = 0;    // since the epoch
  uint64_t size = 0;      // bytes
  uint64_t children = 0;  // layers of this image that stand directly on it, the active one included
  bool automatic = false;
  bool current = false;  // the active layer stands directly on it
  uint64_t data = 0;     // bytes that this layer holds itself
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

// A run of the active layer's own bytes that are neighbours in the file as well.
struct Extent {
  uint64_t offset = 0;       // bytes, in the image
  uint64_t length = 0;       // bytes; 0: none
  uint64_t file_offset = 0;  // bytes, in the image's file
};

// What a range of an image is: bytes in a file, zeros that a layer holds, or a range that no layer
// holds (which reads as zeros).
enum class ExtentKind { kData, kZero, kHole };

// A range that one layer holds, as Image::map finds it. (The bytes of a kData range may be zeros,
// too.)
struct MapExtent {
  uint64_t offset = 0;  // bytes, in the image
  uint64_t length = 0;  // bytes
  ExtentKind kind = ExtentKind::kHole;
  // Of the layer that holds the range, in the chain: 0 is the layer that was asked for. Not set for
  // a hole.
  uint64_t depth = 0;
  uint64_t file_offset = 0;  // bytes, in that layer's file; only set for kData
  bool remote = false;       // of kData: the bytes are not in that file yet
};

struct ExtentBatch {
  std::vector<MapExtent> extents;  // ascending
  uint64_t next = 0;               // where the next batch begins, bytes; equals `size` at the end
  uint64_t size = 0;               // bytes of the layer that was asked for
  std::vector<LayerRef> chain;     // of that layer, itself first: `depth` is an index into it
  // Identifies this chain, with its files and layers. Depths of two batches mean the same layers
  // only if it is equal in both.
  uint64_t chain_state = 0;
};

// A block of which some sub-blocks are remote.
struct RemoteEntry {
  uint32_t block;
  uint16_t mask;  // of these sub-blocks
};

struct RemoteBatch {
  std::vector<RemoteEntry> blocks;  // ascending
  std::optional<uint64_t> next;     // the block where the next batch begins; null: there is none
};

// Layers of a chain by their depth, without `end`.
struct DepthRange {
  uint64_t first = 0;
  uint64_t end = UINT64_MAX;
};

// The most bytes that one fault maps; a run of this length may be one huge page.
inline constexpr uint64_t kLargestRun = uint64_t{2} << 20;

// What a monitor knows about the surroundings of a fault.
struct FaultHint {
  // Bytes beyond the fault that may be allocated, because its writer continues there.
  uint64_t ahead = 0;
  bool whole_block = false;  // the whole block should be copied at its first write
};

// What a fault needed, for statistics.
struct FaultWork {
  bool expanded = false;  // space was allocated, because no lower layer held anything
  bool copied = false;    // something was copied from lower layers
  uint64_t copied_bytes = 0;
};

// Called from the working thread; returning false cancels the operation, and the image stays sound.
using Progress = std::function<bool(uint64_t done, uint64_t total)>;

class Image {
 public:
  // Fails with kNotAnImage, kUnsupported, kCorrupt, kLocked, kBase…, kPermission, kIo, …
  static Result<std::unique_ptr<Image>> open(const std::string& path, const OpenOptions& options);
  ~Image();  // closes; an error of the last sync is lost, so call close() if it matters
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  ImageInfo info() const;
  // Oldest first, without hidden layers. `with_data` counts each layer's bytes, which needs a read
  // of its table.
  Result<std::vector<SnapshotInfo>> snapshots(bool with_data) const;
  // One snapshot; its bytes are not counted. kNotFound if it does not exist.
  Result<SnapshotInfo> snapshot_info(const std::string& name) const;
  Result<std::vector<std::string>> snapshot_names() const;  // in the same order
  // The whole tree at one moment, by ascending ids: the active layer is last.
  Result<std::vector<LayerInfo>> layers() const;
  uint64_t size() const;  // bytes of the active layer
  // "DEVICE:INODE" of the image file, decimal, from fstat(2); empty if that fails.
  std::string file_identity() const;
  // Grows whenever the content of the active layer may have changed other than by a write
  // (rollback).
  uint64_t content_generation() const;

  // A frozen layer for reading, by name or id. It stays readable as long as the view exists; if the
  // snapshot is deleted, later reads fail with kNotFound.
  Result<std::shared_ptr<View>> view(const std::string& snapshot) const;
  // Any layer by its id, for a reader that takes long: an id always means the same layer, while a
  // name or "the active layer" may mean another one at the next call. The active layer stays
  // readable after a snapshot has frozen it, and a deleted layer as long as several layers stand on
  // it (it is not merged then). Otherwise kNotFound.
  Result<std::shared_ptr<View>> view_of_layer(uint64_t layer) const;
  uint64_t view_size(const View& view) const;

  // Reads the active layer (`view` null) or a frozen one. Returns the bytes read: fewer than asked
  // for only at the end.
  Result<size_t> read(const View* view, uint64_t offset, void* buffer, size_t length) const;
  // The layers that the active layer (`view` null) or a frozen one reads from, itself first.
  Result<std::vector<LayerRef>> chain(const View* view) const;
  // Where the bytes of the active layer (`view` null) or of a frozen one are, from `offset` on: 0
  // first, then the `next` of the previous batch. If `depths` excludes some layers, a hole is a
  // range that none of the included layers holds. While the image is written, each batch is right
  // for a moment of its own.
  Result<ExtentBatch> map(const View* view, uint64_t offset, DepthRange depths) const;
  // The ranges of `to` that may differ from `from` (null: the active layer), by sub-blocks; all
  // other ranges read the same. If one of them is longer, the rest of it is not compared.
  Result<ExtentBatch> changes(const View* from, const View* to, uint64_t offset) const;
  // The ranges that the layer, and those below it in this file, hold: where its content may differ
  // from that of the base, by sub-blocks. The active layer if `to` is null. Nothing from `end` on.
  Result<ExtentBatch> changes_to_base(const View* to, uint64_t offset,
                                      uint64_t end = UINT64_MAX) const;
  // Writes everything or fails; after an error any part may have been written, as with write(2).
  Result<void> write(uint64_t offset, const void* buffer, size_t length);
  // Afterwards the range reads as zeros. Whole blocks are released.
  Result<void> discard(uint64_t offset, uint64_t length);
  // Everything that was written before the call is durable when it returns. A failure is
  // remembered: every later sync fails, too.
  Result<void> sync();

  // Freezes the active layer under a name. The snapshot is durable on return.
  Result<void> snapshot(const std::string& name, const SnapshotOrigin& origin = {});
  // The same for several images at one moment. The images may be in any order, each of them once.
  static Result<void> snapshot_together(const std::vector<Image*>& images, const std::string& name);
  // Makes a new empty active layer on that snapshot; the content of the old active layer is lost.
  // The caller ensures that no process has the image mapped.
  Result<void> rollback(const std::string& name);
  // Renames a snapshot. It remains the same layer, so views of it and images that stand on it are
  // not affected. An automatic snapshot becomes an ordinary one. Durable on return. kNotFound,
  // kExists, kInvalid for `to`.
  Result<void> rename_snapshot(const std::string& from, const std::string& to);
  // Deletes a snapshot: merges it into its only child, drops it if it has none, and hides it if it
  // has several.
  Result<void> remove(const std::string& name, const Progress& progress);
  // Gives the active layer `size` bytes. It becomes smaller only with `shrink`, and never smaller
  // than the layer that it stands on; for this the caller ensures that no process has the image
  // mapped.
  Result<void> resize(uint64_t size, bool shrink = false);
  // The id of a frozen layer with the present content: the newest one if the active layer is empty,
  // otherwise a new automatic snapshot called `name`.
  Result<uint64_t> freeze_for_clone(const std::string& name);
  Result<uint64_t> layer_id(const std::string& snapshot) const;  // empty: the active layer
  // Makes the image stand on another base without looking at the content (unsafe rebase). An empty
  // path: no base.
  Result<void> set_base(const BaseSpec& base, bool has_base);
  // Makes the image stand on another base, or on none, and takes in what the two hold differently:
  // its content stays the same.
  Result<void> rebase(const BaseSpec& base, bool has_base, const Progress& progress);
  // Moves what this image has written into its base, `base`, as a new snapshot called `name` there.
  // Afterwards the image is empty and stands on that snapshot. Returns whether the base's own
  // content changed as well: it does if the base has written nothing since; then the caller ensures
  // that no process has the base mapped. The image itself may be in use.
  Result<bool> commit_into(Image* base, const std::string& name, bool automatic,
                           const Progress& progress);
  // Gives back the blocks, of all layers, that hold only zeros.
  Result<void> compact(const Progress& progress);

  // Makes checksums for frozen layers that have none. Runs concurrently with all other operations.
  Result<void> add_checksums(const Progress& progress);
  // Removes all checksums: damaged data is then read as it lies on the disk.
  Result<void> remove_checksums();
  // Reads everything that has checksums from the disk. Fails if the scrub could not be completed,
  // but not because of what it finds.
  Result<ScrubReport> scrub(const Progress& progress) const;

  // Lazy images (docs/format.md, "Source"). What needs remote bytes fails with kRemote.
  //
  // Makes the image lazy, or gives it another source; null: an ordinary image again, for which
  // nothing may be remote any more. Durable on return.
  Result<void> set_source(const std::optional<std::vector<uint8_t>>& content);
  Result<std::optional<std::vector<uint8_t>>> source() const;  // null: the image is not lazy
  // The active layer holds these sub-blocks, of blocks of which it held nothing, and they are
  // remote. For the maker of a draft.
  Result<void> mark_remote(const std::vector<RemoteEntry>& entries);
  // Stores the bytes of remote sub-blocks of a frozen layer: whole blocks from `block` on, or up to
  // the end of the layer. What is not remote is ignored. Returns how many blocks were filled. After
  // a crash some of these may be remote again, but none is damaged.
  Result<uint64_t> fill(uint64_t layer, uint64_t block, const void* data, size_t length);
  // Makes blocks of a snapshot remote again, if the layer holds exactly the given sub-blocks of
  // them, and durably. Their disk space is free on return. Returns for each block whether it was
  // done. kBusy: not now, because another change of the structure is in progress.
  Result<std::vector<bool>> give_back(uint64_t layer, const std::vector<RemoteEntry>& blocks);
  // Whether this process has read, through any opening, one of these blocks of the layer since the
  // last call about it.
  bool take_uses(uint64_t layer, uint64_t block, uint64_t count) const;
  // That all layers hold, and that are not in the file yet.
  Result<uint64_t> remote_bytes() const;
  // The remote blocks of a layer, from `from` on: 0 first, then the `next` of the previous batch.
  Result<RemoteBatch> remote_blocks(uint64_t layer, uint64_t from) const;

  // For a monitor, which maps the image's own blocks into memory. One thread at a time calls these,
  // except the last three.
  //
  // Returns the run of own bytes around `offset` that may be mapped for writing: at most the 2 MiB
  // around it, within its chunk.
  Result<Extent> held(uint64_t offset) const;
  // Ensures that the active layer holds the sub-block at `offset`, with disk space. Returns the
  // range that this call made the layer's own, or, if the layer held it already, the run that
  // held() returns. If no lower layer holds anything there, up to `hint.ahead` more bytes are
  // allocated. Otherwise the first write to a block copies one sub-block, and the next one
  // completes the block. If the disk is full (kNoSpace), nothing changes.
  Result<Extent> make_writable(uint64_t offset, const FaultHint& hint, FaultWork* work);
  // Allocates up to `length` bytes from `offset` on, before a writer needs them. Stops at the first
  // block that any layer holds.
  Result<void> allocate_ahead(uint64_t offset, uint64_t length);
  // Copies to every block of the chunk at `offset` what lower layers hold, so that the chunk can be
  // mapped in few pieces.
  Result<void> complete_chunk(uint64_t offset, FaultWork* work);
  // About how many pieces of the file the chunk would then be, at most. (ChunkMove makes one.)
  uint64_t pieces_when_complete(uint64_t offset) const;
  // The offset in the file of the active layer's own byte at `offset`; 0 if the layer does not hold
  // it.
  uint64_t file_offset(uint64_t offset) const;
  int descriptor() const;  // of the image's file: what extents are mapped from

  // For an image that was opened with given descriptors: the descriptors of its bases' files, as
  // the chain is now.
  Result<void> give_bases(const std::vector<GivenFile>& bases);

  // Syncs, sets the clean flag and gives up the lock. Later calls fail with kClosed.
  Result<void> close();

 private:
  friend class ChunkMove;
  friend class PendingSnapshot;
  explicit Image(std::unique_ptr<ImageState> state);
  std::unique_ptr<ImageState> state_;
};

// A snapshot in steps, all on one thread. Before commit() the destructor undoes it.
class PendingSnapshot {
 public:
  // Syncs, and makes the new structure durable beside the old one. From here on other changes of
  // structure wait.
  static Result<std::unique_ptr<PendingSnapshot>> prepare(Image* image, const std::string& name,
                                                          bool automatic,
                                                          const SnapshotOrigin& origin = {});
  // Blocks reads, writes and discards. commit() or the destructor must follow.
  void close_gate();
  // The moment of the snapshot: from here on the new active layer takes writes. Opens the gate.
  Result<void> commit();
  // Returns when the snapshot is durable.
  Result<void> finish();
  ~PendingSnapshot();

 private:
  explicit PendingSnapshot(std::unique_ptr<PendingState> state);
  std::unique_ptr<PendingState> state_;
};

// The blocks of a chunk of the active layer are completed, and brought into one piece of the file,
// which lies elsewhere. The image may be used meanwhile. own_blocks.h describes the order.
class ChunkMove {
 public:
  // Of the chunk at `offset`. kNoSpace if the file cannot grow.
  static Result<std::unique_ptr<ChunkMove>> begin(Image* image, uint64_t offset);
  // Copies what has not been moved yet of bytes [from, to) of the chunk, whole blocks, and syncs
  // the copies.
  Result<void> copy(uint64_t from, uint64_t to, FaultWork* work);
  // Whether there are copies of blocks in the range that were not moved yet.
  bool has_copies(uint64_t from, uint64_t to) const;
  // Moves the blocks that have copies, except those that were changed in a way that forbids it: they
  // may be copied again. Returns what was moved. From before this call until it returns nobody may
  // store through a mapping of the range's blocks; those that were moved are released.
  Result<std::vector<Extent>> move(uint64_t from, uint64_t to);
  // Everything was moved, or nothing more can be: another layer is active now.
  bool is_done() const;
  // Before the image is closed.
  ~ChunkMove();

 private:
  explicit ChunkMove(std::unique_ptr<MoveState> state);
  std::unique_ptr<MoveState> state_;
};

}  // namespace pcow
