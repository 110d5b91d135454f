/** The arguments and results of an image's operations. Sizes and offsets are bytes. */
import type { PcowError } from './errors.js';

/** The base of a new image: a frozen layer of another image. */
export interface BaseOptions {
  /**
   * The base image, as the user gave it; stored relative to the new image's directory if possible.
   */
  path: string;
  /** The snapshot to stand on. Give this or `layer`. */
  snapshot?: string | undefined;
  /** The id of a frozen layer, as returned by Image.freezeForClone. */
  layer?: number | undefined;
}

/** For Image.create. */
export interface CreateOptions {
  /** A multiple of 4096, 64 KiB to 64 TiB; default: the base's. */
  size?: number | undefined;
  /**
   * A power of two, 4 KiB to 2 MiB; default: 65536. An image on a base has the block size of the
   * base.
   */
  blockSize?: number | undefined;
  /**
   * Replace an existing file; but never one that a process has open for writing, or on which other
   * images of its directory stand.
   */
  force?: boolean | undefined;
  /** The base of the new image; default: none. */
  base?: BaseOptions | undefined;
}

/** For Image.open. */
export interface OpenOptions {
  /**
   * Be the only writer of the image: takes its lock, or fails with PCOW_LOCKED. Default: read only,
   * no lock.
   */
  write?: boolean | undefined;
  /**
   * A directory that must contain every base after symbolic links are resolved; otherwise
   * PCOW_BASE_OUTSIDE.
   */
  baseRoot?: string | undefined;
}

/** The base of an image. */
export interface BaseInfo {
  /** As stored in the image. */
  path: string;
  /** Absolute. */
  resolved: string;
  /** The uuid of the base image: if another image is at the path, that is PCOW_BASE_CHANGED. */
  uuid: string;
  /** The id of the frozen layer in the base. */
  layer: number;
  /** The name of that layer, if it has one. */
  snapshot: string | null;
}

/** The process that has an image open for writing. */
export interface Holder {
  /** Process id, as the process itself sees it. */
  pid: number;
  /**
   * Clock ticks since boot (field 22 of /proc/PID/stat): distinguishes the process from a later one
   * with the same pid.
   */
  startTime: number;
  /** As in /proc/PID/comm. */
  command: string;
  /** The host on which it runs, if that is not this one ("?" if it is not known). */
  host: string | null;
}

/** One layer of the chain that a read falls through. */
export interface ChainLink {
  /** The image file that contains this layer. */
  path: string;
  /** null: the active layer, or a frozen layer without a name. */
  snapshot: string | null;
  /** Its id in that file, which is never used again for another layer. */
  layer: number;
}

/** One layer of an image's tree. */
export interface LayerInfo {
  /** Never used again for another layer of this image. */
  id: number;
  /**
   * The id of the layer on which it stands; null: a root, which stands on the image's base, if it
   * has one.
   */
  parent: number | null;
  /** null: the active layer, or a hidden one. */
  name: string | null;
  /** A deleted snapshot on which several layers stand, or which waits to be merged. */
  hidden: boolean;
  /** It takes the writes. */
  active: boolean;
  /** As in SnapshotInfo; null: the active layer, which has none yet. */
  identity: string | null;
  /** When it was frozen; for the active layer, when it was made. */
  created: Date;
  /** Bytes. */
  size: number;
}

/**
 * A layer to read: a snapshot by its name, or a layer by its id (Image.layers, SnapshotInfo.id). An
 * id always means the same layer. So use ids for long reads: the active layer's id still means that
 * layer after a snapshot has been taken.
 */
export type LayerChoice = string | number;

/** The result of Image.info. */
export interface ImageInfo {
  /** Of the image file, absolute. */
  path: string;
  /** 8-4-4-4-12 hex digits. */
  uuid: string;
  /** The format version (docs/format.md). */
  formatVersion: number;
  /** Of the active layer: what a guest sees. */
  size: number;
  /** Bytes: the unit of allocation. */
  blockSize: number;
  /** Bytes: the unit of fine-grained copy-on-write. */
  subBlockSize: number;
  /** The size of the image file, including holes. */
  fileSize: number;
  /** Disk space that the image file takes. */
  diskUse: number;
  /** Whether it has a source for bytes that are still in a registry. */
  lazy: boolean;
  /** Whether an image on which it stands has one. */
  standsOnLazy: boolean;
  /** Whether the last writer closed the image. False while a process has it open for writing. */
  clean: boolean;
  /** Whether this opening may write. */
  writable: boolean;
  /** Incremented by every change of the structure. */
  generation: number;
  /** The number of snapshots. */
  snapshots: number;
  /** null: the image stands on no base. */
  base: BaseInfo | null;
  /** Active layer first. */
  chain: ChainLink[];
  /** The living process that has it open for writing, if there is one. */
  holder: Holder | null;
  /** If the image is not clean: the process that last opened it for writing, alive or not. */
  opener: Holder | null;
  /** The last operation that failed on this opening. */
  lastError: ImageFailure | null;
  /**
   * Whether this opening may write, and stores into persistent memory directly
   * (docs/durability.md).
   */
  persistent: boolean;
  /** How often this opening has called write(2) for the image's file. */
  kernelWrites: number;
  /**
   * How often this opening has asked the kernel to make data of the image's file durable:
   * fdatasync(2) and similar calls.
   */
  kernelSyncs: number;
}

/** An operation on an image that failed. */
export interface ImageFailure {
  /** The time of the failure. */
  time: Date;
  /** The error that the operation threw, or with which it rejected. */
  error: PcowError;
}

/** A named frozen layer. */
export interface SnapshotInfo {
  /** 1 to 255 bytes of UTF-8. */
  name: string;
  /** Of its layer in this image. */
  id: number;
  /** Identifies the content, 16 hex digits: the same in every image that received the snapshot. */
  identity: string;
  /** The nearest ancestor with a name in this image; null at the root. */
  parent: string | null;
  /** When it was taken. */
  created: Date;
  /** The size of the image when the snapshot was taken. */
  size: number;
  /** The number of layers that stand directly on it, including the active one. */
  children: number;
  /** Taken by Pcow itself, for a clone. */
  automatic: boolean;
  /** The active layer stands directly on it. */
  current: boolean;
  /** Bytes that this layer itself holds. */
  data: number;
}

/** What a received snapshot shares with the original in another image. */
export interface SnapshotOrigin {
  /** As in SnapshotInfo. */
  identity: string;
  /** When it was taken there: from 1677-09-22 to 2262-04-11. */
  created: Date;
}

/** A range of an image, as Image.map and Image.diff list it. */
export interface Extent {
  /** Bytes from the beginning of the image. */
  offset: number;
  /** Bytes. */
  length: number;
  /**
   * `data`: bytes in a file (which may be zeros). `zero`: zeros that a layer holds over the layers
   * below. `hole`: no layer holds anything, so the range reads as zeros.
   */
  kind: 'data' | 'zero' | 'hole';
  /**
   * The position in the chain (when this range was read) of the layer that holds it: 0 is the
   * requested layer. null for a hole.
   */
  depth: number | null;
  /** That layer. null for a hole. */
  layer: ChainLink | null;
  /** The offset of the bytes in that layer's file. null unless `data`, and while they are remote. */
  place: number | null;
  /** Only set for `data` of a lazy image that has not been fetched yet: reading it fails. */
  remote?: true;
}

/** A part of what a layer of a lazy image lacks, as Image.remoteRanges lists it. */
export interface RemoteRanges {
  /** In ascending order. */
  ranges: {
    /** Its number in the layer. */
    block: number;
    /** A bit for each remote sub-block of it. */
    mask: number;
  }[];
  /** From where to go on; null: there are no more. */
  next: number | null;
}

/** Layers of a chain, counted from the requested one. */
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
  /**
   * Read only these layers of the chain, by depth: a range that none of them holds is a hole. `end`
   * is excluded; default: all.
   */
  depths?: DepthRange | undefined;
  /**
   * The result of Image.chainState(): the walk ends with PCOW_BUSY if the chain has changed since,
   * because depths would mean other layers.
   */
  chain?: string | undefined;
  /** Aborting ends the iteration with PCOW_CANCELLED. */
  signal?: AbortSignal | undefined;
}

/** For operations that may take long. */
export interface LongOptions {
  /**
   * Aborting fails the operation with PCOW_CANCELLED, and the reason as its cause; the image stays
   * intact.
   */
  signal?: AbortSignal | undefined;
  /**
   * Called on the JavaScript thread, from time to time. The unit is the operation's own; done
   * equals total at the end.
   */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

/** A finding of a check. */
export interface Finding {
  /** A note is not a fault. A leak is data where nothing should be. */
  severity: 'note' | 'leak' | 'damage';
  /** The structure that contains it. */
  structure:
    | 'file'
    | 'superblock'
    | 'directory'
    | 'table'
    | 'entry'
    | 'block'
    | 'checksums'
    | 'source'
    | 'base'
    | 'free space';
  /** A sentence, without the name of the image. */
  message: string;
  /** The offset in the image file. */
  place: number;
  /** The id of the layer concerned. */
  layer: number | null;
  /** The name of that layer. */
  snapshot: string | null;
  /** The offset in the flat file, if it concerns content. */
  offset: number | null;
  /** The number of bytes of the flat file concerned. */
  length: number | null;
  /** Whether it was repaired. */
  repaired: boolean;
}

/** What a repair could not restore in one snapshot, or in the image's present content. */
export interface Loss {
  /** The id of its layer. */
  layer: number;
  /** Its name; null: the present content. */
  snapshot: string | null;
  /** Bytes that read differently now: as the layers below, or as zeros. */
  gone: number;
  /** Bytes that may or may not read as before. */
  doubtful: number;
  /** The ranges in the flat file; the first thousand. */
  ranges: {
    /** Bytes. */
    offset: number;
    /** Bytes. */
    length: number;
    /** true: gone; false: doubtful. */
    certain: boolean;
  }[];
}

/** The result of checkImage. Values are null if they are unknown because of damage. */
export interface CheckReport {
  /** Of the image file. */
  path: string;
  /** 8-4-4-4-12 hex digits. */
  uuid: string | null;
  /** Of the superblock in force. */
  generation: number | null;
  /** Bytes. */
  blockSize: number | null;
  /** Of the active layer. */
  size: number | null;
  /** The number of snapshots. */
  snapshots: number | null;
  /** Bytes of the blocks to which entries refer. */
  data: number | null;
  /** Bytes of a lazy image that have not been fetched yet. */
  remote: number;
  /** A process has it open for writing, so the values may change. */
  inUse: boolean;
  /** Its last writer closed it. */
  clean: boolean;
  /** Not clean, and left by an earlier boot of the host: what was not synced does not count. */
  hostCrashed: boolean;
  /** Bytes that the next open for writing drops for that reason, or that the repair dropped. */
  dropped: number;
  /** The number of damages at the end. */
  damages: number;
  /** The number of blocks with data in free space at the end. */
  leaks: number;
  /** The number of repaired findings. */
  repaired: number;
  /** The file with data that a repair could not assign; null: there is none. */
  lost: string | null;
  /**
   * What a repair could not restore, for each snapshot that has lost something. The structure may
   * be intact nevertheless.
   */
  losses: Loss[];
  /**
   * Data blocks to which nothing referred, which a repair could only keep in `lost`: some content
   * lacks them.
   */
  unplaced: number;
  /**
   * A repair had to use the layer directory before the newest one: the last snapshot, deletion or
   * resize is undone.
   */
  olderDirectory: boolean;
  /** The first thousand. */
  findings: Finding[];
}

/** The result of a scrub. */
export interface ScrubReport {
  /** Of the image file. */
  path: string;
  /** Bytes that still match their checksums. */
  verified: number;
  /** The number of damages; `findings` lists the first thousand. */
  damages: number;
  /** The first thousand. */
  findings: Finding[];
  /** The snapshots, oldest first, and deleted snapshots on which others stand. */
  layers: ScrubbedLayer[];
}

/** A frozen layer, and how much of it a scrub can verify. */
export interface ScrubbedLayer {
  /** Its id. */
  layer: number;
  /** null: it was deleted, and others stand on it. */
  snapshot: string | null;
  /** Bytes that have checksums. */
  covered: number;
  /** Bytes without checksums. */
  missing: number;
}
