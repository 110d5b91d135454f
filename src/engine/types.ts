/** What goes into and comes out of an image. Sizes and offsets are bytes. */
import type { PcowError } from './errors.js';

/** Where a new image stands: a frozen layer of another image. */
export interface BaseOptions {
  /** Of the base image, as the user gave it; stored relative to the new image's directory where possible. */
  path: string;
  /** The snapshot to stand on. Give this or `layer`. */
  snapshot?: string | undefined;
  /** The id of a frozen layer, as Image.freezeForClone returns it. */
  layer?: number | undefined;
}

/** For Image.create. */
export interface CreateOptions {
  /** A multiple of 4096, 64 KiB to 64 TiB; default: the base's. */
  size?: number | undefined;
  /** A power of two, 4 KiB to 2 MiB; default: 65536. An image on a base has the base's. */
  blockSize?: number | undefined;
  /** Replace an existing file; never one that a process has open for writing, or that other images of its directory stand on. */
  force?: boolean | undefined;
  /** What the new image stands on; default: nothing. */
  base?: BaseOptions | undefined;
}

/** For Image.open. */
export interface OpenOptions {
  /** Be the one writer of the image: takes its lock, or fails with PCOW_LOCKED. Default: read only, no lock. */
  write?: boolean | undefined;
  /** A directory that every base must lie in after symbolic links are resolved, else PCOW_BASE_OUTSIDE. */
  baseRoot?: string | undefined;
}

/** What an image stands on. */
export interface BaseInfo {
  /** As stored in the image. */
  path: string;
  /** Absolute. */
  resolved: string;
  /** Of the base image: another one at the path is PCOW_BASE_CHANGED. */
  uuid: string;
  /** The id of the frozen layer in the base. */
  layer: number;
  /** That layer's name, where it has one. */
  snapshot: string | null;
}

/** The process that has an image open for writing. */
export interface Holder {
  /** Process id, in this process's namespace. */
  pid: number;
  /** Clock ticks since boot (field 22 of /proc/PID/stat): tells the process from a later one with its pid. */
  startTime: number;
  /** As in /proc/PID/comm. */
  command: string;
}

/** One layer of the chain that a read falls through. */
export interface ChainLink {
  /** The image file that holds this layer. */
  path: string;
  /** null: the active layer, or a frozen one without a name. */
  snapshot: string | null;
  /** Its id in that file: never used again for another layer. */
  layer: number;
}

/** One layer of an image's tree. */
export interface LayerInfo {
  /** Never used again for another layer of this image. */
  id: number;
  /** The id of the layer that it stands on; null: a root, which stands on the image's base, if it has one. */
  parent: number | null;
  /** null: the active layer, or a hidden one. */
  name: string | null;
  /** A snapshot that was deleted, and that several layers stand on, or that waits to be merged. */
  hidden: boolean;
  /** It takes the writes. */
  active: boolean;
  /** As in SnapshotInfo; null: the active layer, which has none yet. */
  identity: string | null;
  /** When it was frozen; of the active layer when it was made. */
  created: Date;
  /** Bytes. */
  size: number;
}

/**
 * What to read: a snapshot by its name, or a layer by its id (Image.layers, SnapshotInfo.id). An id is one layer for ever. So whoever reads for
 * long takes ids: the active layer by its id stays what it was when somebody takes a snapshot meanwhile.
 */
export type LayerChoice = string | number;

/** What Image.info tells. */
export interface ImageInfo {
  /** Of the image file, absolute. */
  path: string;
  /** 8-4-4-4-12 hex digits. */
  uuid: string;
  /** Of docs/format.md. */
  formatVersion: number;
  /** Of the active layer: what a guest sees. */
  size: number;
  /** Bytes: the unit of allocation. */
  blockSize: number;
  /** Bytes: the unit of fine-grained copy-on-write. */
  subBlockSize: number;
  /** Of the image file, holes included. */
  fileSize: number;
  /** What the image file takes on its disk. */
  diskUse: number;
  /** Whether the last writer closed the image. False while somebody has it open for writing. */
  clean: boolean;
  /** Whether this opening may write. */
  writable: boolean;
  /** Grows with every change of structure. */
  generation: number;
  /** How many. */
  snapshots: number;
  /** null: the image stands on nothing. */
  base: BaseInfo | null;
  /** Active layer first. */
  chain: ChainLink[];
  /** The living process that has it open for writing, if any. */
  holder: Holder | null;
  /** Of an image that is not clean: the process that opened it for writing last, alive or not. */
  opener: Holder | null;
  /** Of the last operation that failed on this opening. */
  lastError: ImageFailure | null;
  /** Whether this opening may write, and stores into persistent memory directly (docs/durability.md). */
  persistent: boolean;
  /** How often this opening has called write(2) for the image's file. */
  kernelWrites: number;
  /** How often this opening has asked the kernel to make something of the image's file durable: fdatasync(2) and the like. */
  kernelSyncs: number;
}

/** An operation on an image that failed. */
export interface ImageFailure {
  /** When. */
  time: Date;
  /** What the operation threw or rejected with. */
  error: PcowError;
}

/** A named frozen layer. */
export interface SnapshotInfo {
  /** 1 to 255 bytes of UTF-8. */
  name: string;
  /** Of its layer in this image. */
  id: number;
  /** Of the content, 16 hex digits: the same in every image that the snapshot was sent to. */
  identity: string;
  /** The nearest named ancestor in this image; null at the root. */
  parent: string | null;
  /** When it was taken. */
  created: Date;
  /** Of the image when it was taken. */
  size: number;
  /** Layers that stand directly on it, the active one included. */
  children: number;
  /** Made by Pcow for a clone, not asked for by name. */
  automatic: boolean;
  /** The active layer stands directly on it. */
  current: boolean;
  /** Bytes that this layer itself holds. */
  data: number;
}

/** What a snapshot that is received from another image shares with that one. */
export interface SnapshotOrigin {
  /** As in SnapshotInfo. */
  identity: string;
  /** When it was taken there: from 1677-09-22 to 2262-04-11. */
  created: Date;
}

/** A range of an image, as Image.map and Image.diff list it. */
export interface Extent {
  /** Bytes from the begin of the image. */
  offset: number;
  /** Bytes. */
  length: number;
  /**
   * `data`: bytes in a file (which may be zeros). `zero`: zeros that a layer holds over what is below. `hole`: no layer holds
   * anything, which reads as zeros.
   */
  kind: 'data' | 'zero' | 'hole';
  /** Where in the chain, as it was when this range was looked at, the layer is that holds it: 0 is the one that was asked for. null of a hole. */
  depth: number | null;
  /** That layer. null of a hole. */
  layer: ChainLink | null;
  /** Where the bytes are in that layer's file. null unless `data`. */
  place: number | null;
}

/** Layers of a chain, counted from the one that is asked for. */
export interface DepthRange {
  /** The first of them. */
  first: number;
  /** The one after the last. */
  end: number;
}

/** For Image.map. */
export interface MapOptions {
  /** Default: the layer that is active when the walk begins. */
  snapshot?: LayerChoice | undefined;
  /** Looks only at these layers of the chain, by depth: a hole is what none of them holds. `end` excluded; default: all. */
  depths?: DepthRange | undefined;
  /** What Image.chainState() has said: the walk ends with PCOW_BUSY when its layers are not these any more, so that depths would count others. */
  chain?: string | undefined;
  /** Aborting ends the iteration with PCOW_CANCELLED. */
  signal?: AbortSignal | undefined;
}

/** For operations that may take long. */
export interface LongOptions {
  /** Aborting fails the operation with PCOW_CANCELLED, and the reason as its cause; the image stays sound. */
  signal?: AbortSignal | undefined;
  /** Called on the JavaScript thread, now and then. The unit is the operation's own; done reaches total at the end. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

/** What a check has found, and where. */
export interface Finding {
  /** A note is no fault. A leak is bytes where nothing should be. */
  severity: 'note' | 'leak' | 'damage';
  /** What it is in. */
  structure: 'file' | 'superblock' | 'directory' | 'table' | 'entry' | 'block' | 'checksums' | 'base' | 'free space';
  /** A sentence, without the name of the image. */
  message: string;
  /** Offset in the image file. */
  place: number;
  /** The id of the layer that it concerns. */
  layer: number | null;
  /** The name of that layer. */
  snapshot: string | null;
  /** Where in the flat file it concerns something. */
  offset: number | null;
  /** How many bytes of the flat file it concerns. */
  length: number | null;
  /** Whether it was mended. */
  repaired: boolean;
}

/** What a repair could not bring back of one snapshot, or of the image's present content. */
export interface Loss {
  /** The id of its layer. */
  layer: number;
  /** Its name; null: the present content. */
  snapshot: string | null;
  /** Bytes that read as something else than they did: as what lies below, or zeros. */
  gone: number;
  /** Bytes of which nobody can tell whether they read as they did. */
  doubtful: number;
  /** Where, in the flat file; the first thousand. */
  ranges: {
    /** Bytes. */
    offset: number;
    /** Bytes. */
    length: number;
    /** Gone, not doubtful. */
    certain: boolean;
  }[];
}

/** What checkImage has found. Figures are null where too much is damaged to tell them. */
export interface CheckReport {
  /** Of the image file. */
  path: string;
  /** 8-4-4-4-12 hex digits. */
  uuid: string | null;
  /** Of the superblock that counts. */
  generation: number | null;
  /** Bytes. */
  blockSize: number | null;
  /** Of the active layer. */
  size: number | null;
  /** How many. */
  snapshots: number | null;
  /** Bytes of blocks that entries name. */
  data: number | null;
  /** Somebody has it open for writing: the figures are of a moving image. */
  inUse: boolean;
  /** Its last writer has closed it. */
  clean: boolean;
  /** Not clean, and left by another boot of the host: what was not synced does not count. */
  hostCrashed: boolean;
  /** Bytes that the next opening for writing drops for that reason, or that the repair has dropped. */
  dropped: number;
  /** How many there are at the end. */
  damages: number;
  /** How many blocks with bytes in free space there are at the end. */
  leaks: number;
  /** How many were mended. */
  repaired: number;
  /** The file with what a repair could not place; null: there was nothing. */
  lost: string | null;
  /** What a repair could not bring back, for each snapshot that misses something. The structure can be sound all the same. */
  losses: Loss[];
  /** Blocks of data that nothing named, so that a repair could only keep them in `lost`: something misses them. */
  unplaced: number;
  /** A repair had to go back to the directory before the newest one: what was snapshotted, deleted or resized last is undone. */
  olderDirectory: boolean;
  /** The first thousand. */
  findings: Finding[];
}

/** What a scrub has found. */
export interface ScrubReport {
  /** Of the image file. */
  path: string;
  /** Bytes that are as they were when their checksums were made. */
  verified: number;
  /** How many there are; `findings` lists the first thousand. */
  damages: number;
  /** The first thousand. */
  findings: Finding[];
  /** The snapshots, oldest first, and deleted ones on which others stand. */
  layers: ScrubbedLayer[];
}

/** A frozen layer, and how much of it a scrub can verify. */
export interface ScrubbedLayer {
  /** Its id. */
  layer: number;
  /** null: it is deleted, and others stand on it. */
  snapshot: string | null;
  /** Bytes that have checksums. */
  covered: number;
  /** Bytes that have none. */
  missing: number;
}
