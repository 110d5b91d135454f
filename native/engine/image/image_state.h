// The state behind Image: the parts of an open image, each a class with its own state. Nothing
// outside the engine includes this file.
//
// Locks, in the order in which they are taken:
//   checksumming  (ChecksumWork) one maker of checksums at a time; close() waits for it
//   filling       (Filling) shared: fills. close() waits for them
//   structure     (Structure) one change of structure at a time (snapshot, rollback, rename,
//                 remove, resize, set_base, close)
//   syncing       (Durability) one sync at a time; also held while a table is dropped, because a
//                 sync stores into tables
//   gate          shared: reads, writes, discards. Exclusive: the moment in which the active layer
//                 is exchanged, and, as a barrier, before released blocks are punched (no thread
//                 may still be reading them)
//   chunk         (ChunkLocks) read-modify-write of the entries of a chunk, in any table
//   leaf locks    of Space, Table, Chain, Failures, and of the marks in Durability: no other lock
//                 is taken while one is held
//
// A part knows only the parts that are declared before it.
#pragma once

#include "engine/image/active_layer.h"
#include "engine/image/bases.h"
#include "engine/image/checksum_work.h"
#include "engine/image/chunk_locks.h"
#include "engine/image/durability.h"
#include "engine/image/failures.h"
#include "engine/image/filling.h"
#include "engine/image/full_disk.h"
#include "engine/image/gate.h"
#include "engine/image/image_file.h"
#include "engine/image/layers.h"
#include "engine/image/own_blocks.h"
#include "engine/image/space.h"
#include "engine/image/structure.h"
#include "engine/image/superblocks.h"

namespace pcow {

class ImageState : public ImageFile {
 public:
  ImageState(std::string path, OpenOptions options, std::shared_ptr<File> file,
             Superblock superblock, bool bases_are_given)
      : ImageFile{std::move(path), std::move(options), std::move(file),
                  Geometry(superblock.block_shift)},
        superblocks(*this, space, std::move(superblock)),
        durability(*this, gate, chunk_locks, space, superblocks),
        bases(*this, bases_are_given),
        layers(*this, gate, superblocks, bases),
        structure(*this, gate, space, superblocks, layers, durability, failures),
        full_disk(*this, space, superblocks, durability),
        own_blocks(*this, space, durability),
        active_layer(*this, chunk_locks, layers, own_blocks, space) {}

  Failures failures;
  ChecksumWork checksum_work;
  Filling filling;
  mutable Gate gate;
  ChunkLocks chunk_locks;
  std::unique_ptr<Space> space;  // only of the writer; exists after opening
  Superblocks superblocks;       // the superblock that counts, and the next one
  Durability durability;         // what is not durable yet; the sync
  Bases bases;                   // frozen layers in other files
  Layers layers;                 // what is read: the layer directory, tables, chains
  Structure structure;           // changes of the layers
  FullDisk full_disk;            // giving space back on a full disk
  OwnBlocks own_blocks;          // how a block becomes a layer's own
  ActiveLayer active_layer;      // reads, writes, discards, faults
};

// The remote sub-blocks of a layer (image_fill.cc). The caller holds the gate, or `structure`.
Result<uint64_t> count_remote(const ImageState& state, const Layer& layer);

}  // namespace pcow
