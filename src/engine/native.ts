/**
 * Declares the addon's interface, and loads it. Arguments are validated before these functions are
 * called: the C++ code trusts their types. The rest of src/ uses image.ts and native-operations.ts,
 * and never this.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';

import { ADDON, HOW_TO_BUILD } from './built.js';
import { PcowError, type RemoteBlock } from './errors.js';
import type { ChainLink, CheckReport, ImageInfo, ScrubReport } from './types.js';

export interface NativeBase {
  path: string;
  /** Empty if `layer` is given. */
  snapshot: string;
  /** 0 if `snapshot` is given. */
  layer: number;
}

export interface NativeCreateOptions {
  /** 0: as the base. */
  size: number;
  /** 0: as the base, or the default. */
  blockSize: number;
  /** The path is an empty draft, to be filled in place. */
  into: boolean;
  base: NativeBase | null;
}

/** The identity of an image and its base, from its superblock. */
export interface NativeIdentity {
  uuid: string;
  base: { path: string; uuid: string; layer: number } | null;
}

export type NativeImageInfo = Omit<ImageInfo, 'lastError'> & {
  /** `time`: milliseconds since the epoch. */
  lastError: { time: number; error: Error } | null;
};

export interface NativeSnapshotInfo {
  name: string;
  id: number;
  identity: string;
  parent: string | null;
  /** Milliseconds since the epoch. */
  created: number;
  size: number;
  children: number;
  automatic: boolean;
  current: boolean;
  data: number;
}

/**
 * A snapshot's name, the id of a layer, or '' for the layer that is active at the time of each
 * call.
 */
export type NativeLayer = string | number;

export interface NativeLayerInfo {
  id: number;
  parent: number | null;
  name: string | null;
  hidden: boolean;
  active: boolean;
  identity: string | null;
  /** Milliseconds since the epoch. */
  created: number;
  size: number;
}

/** Some of the extents of a layer, in ascending order. */
export interface NativeExtentBatch {
  /**
   * Five numbers for each: offset, length, kind (0 data, 1 zero, 2 hole), depth of the layer,
   * offset in its file.
   */
  extents: Float64Array;
  /** The beginning of the next batch; `size` at the end. */
  next: number;
  size: number;
  /** The chain, beginning with the walked layer, as far down as the extents refer to it. */
  chain: ChainLink[];
  /** Identifies the whole chain: if it differs from the batch before, depths mean other layers. */
  chainState: string;
}

/** Requests on the flat files of an image since it was opened. */
export interface Traffic {
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  syncs: number;
  discards: number;
}

/** Stops a long operation. One for each operation. */
export interface NativeCancellation {
  cancel(): void;
}

/** The events of the attach server; see attach-server.ts. */
export type NativeAttachEvent =
  | {
      kind: 'attach';
      connection: number;
      pid: number;
      uid: number;
      writable: boolean;
      /** "MAJOR:MINOR" of the superblock, in decimal: the same in every mount namespace. */
      device: string;
      inode: bigint;
      flags: number;
    }
  | { kind: 'resume'; connection: number; pid: number; uid: number; identity: string; uuid: string }
  | { kind: 'handed over'; connection: number; ok: boolean; errno: number; text: string }
  | { kind: 'answer'; connection: number; id: number; ok: boolean; errno: number; text: string }
  /** `text`: bytes of the layer, or why it could not be opened. */
  | { kind: 'opened'; connection: number; ok: boolean; errno: number; text: string }
  | { kind: 'release'; connection: number }
  | { kind: 'want'; connection: number }
  /** `text`: the uuid of an image, the id of a layer, the number of a block, and a path. */
  | { kind: 'fetch'; connection: number; id: number; text: string }
  | { kind: 'looked'; connection: number; id: number }
  | { kind: 'closed'; connection: number; text: string };

/** The requests of native/attach/protocol.h, which defines their numbers. */
export type NativeRequestName =
  | 'prepare'
  | 'cut'
  | 'commit'
  | 'finish'
  | 'abort'
  | 'delete'
  | 'status'
  | 'sync'
  | 'rename'
  | 'may fetch'
  | 'store';

/** The clean store of a mount. */
export interface StoreFigures {
  /** Bytes. */
  budget: number;
  /** Bytes that are filled. */
  bytes: number;
  /** Pieces of 64 MiB, which count as a whole. */
  segments: number;
  /** Attached processes that may use it. */
  clients: number;
  /** How often a process was given a segment. */
  given: number;
  /** How often there was no room for a part of a base. */
  refused: number;
}

export interface NativeAttachServer {
  handOver(connection: number, paths: string[], write: boolean): void;
  confirm(connection: number): void;
  refuse(connection: number, errno: number, text: string): void;
  request(
    connection: number,
    id: number,
    name: NativeRequestName,
    value: number,
    text: string,
  ): void;
  /**
   * A request, too. If there are no paths, there is nothing to give, and the monitor may ask again.
   */
  giveBases(connection: number, id: number, paths: string[]): void;
  /**
   * Lets the clean store open the layer `layer` of the image file `path`. `root`: '', or the
   * directory that all bases must be in. After 'opened', the request 'store' may follow, whose text
   * is that of the event.
   */
  share(connection: number, path: string, layer: number, root: string): void;
  /** All 0 if there is no clean store. */
  store(): StoreFigures;
  /** Answers a 'fetch'. `why`: why it is not possible; '': the block is there now. */
  fetched(connection: number, id: number, why: string): void;
  released(connection: number): void;
  look(connection: number, id: number): void;
  close(connection: number, why: string): void;
  stop(): void;
}

/** An open image. Methods that return a Promise do their work outside the JavaScript thread. */
export interface NativeImage {
  info(): NativeImageInfo;
  size(): number;
  snapshots(withData: boolean): NativeSnapshotInfo[];
  snapshotInfo(name: string): NativeSnapshotInfo;
  snapshotNames(): string[];
  layers(): NativeLayerInfo[];
  /** '': the active layer's. */
  layerOf(snapshot: string): number;
  chain(layer: NativeLayer): ChainLink[];
  read(buffer: Uint8Array, offset: number, layer: NativeLayer): Promise<number>;
  /**
   * From `offset` on, which is 0 or the `next` of the batch before. Only layers at depths from
   * `first` to before `end`.
   */
  map(offset: number, layer: NativeLayer, first: number, end: number): Promise<NativeExtentBatch>;
  changes(offset: number, from: NativeLayer, to: NativeLayer): Promise<NativeExtentBatch>;
  changesToBase(offset: number, to: NativeLayer): Promise<NativeExtentBatch>;
  write(buffer: Uint8Array, offset: number): Promise<void>;
  discard(offset: number, length: number): Promise<void>;
  sync(): Promise<void>;
  /**
   * For a received snapshot with its `identity` and its time, `created` (milliseconds); otherwise
   * with null and null.
   */
  snapshot(name: string, identity: string | null, created: number | null): Promise<void>;
  rollback(name: string): Promise<void>;
  renameSnapshot(from: string, to: string): Promise<void>;
  remove(
    name: string,
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<void>;
  resize(size: number, shrink: boolean): Promise<void>;
  freezeForClone(name: string): Promise<number>;
  setBase(base: NativeBase | null): Promise<void>;
  rebase(
    base: NativeBase | null,
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<void>;
  commitInto(
    base: NativeImage,
    name: string,
    automatic: boolean,
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<boolean>;
  compact(
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<void>;
  addChecksums(
    background: boolean,
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<void>;
  removeChecksums(): Promise<void>;
  scrub(
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<ScrubReport>;
  setSource(content: Uint8Array | null): Promise<void>;
  source(): Promise<Buffer | null>;
  /** 8 bytes for each block: its number (32 bits), the mask (16 bits), zeros. */
  markRemote(entries: Uint8Array): Promise<void>;
  fill(layer: number, block: number, data: Uint8Array): Promise<number>;
  /** `blocks`: numbers and masks in turn. */
  giveBack(layer: number, entries: Uint8Array): Promise<Uint8Array>;
  takeUses(layer: number, block: number, count: number): Promise<boolean>;
  remoteBytes(): Promise<number>;
  remoteBlocks(layer: number, from: number): Promise<{ blocks: Uint32Array; next: number | null }>;
  /** Waits for operations in progress. Call it once only. */
  close(): Promise<void>;
}

export interface NativeAddon {
  create(path: string, options: NativeCreateOptions): Promise<void>;
  /** If `baseRoot` is empty, bases may be anywhere. */
  open(path: string, write: boolean, baseRoot: string, withoutBases: boolean): Promise<NativeImage>;
  setBaseBlindly(path: string, base: NativeBase | null): Promise<void>;
  recover(path: string): Promise<'nothing' | 'recovered' | 'in use'>;
  snapshotTogether(images: NativeImage[], name: string): Promise<void>;
  check(
    path: string,
    repair: boolean,
    cancellation: NativeCancellation,
    onProgress: ((done: number, total: number) => void) | null,
  ): Promise<CheckReport>;
  Cancellation: new () => NativeCancellation;
  /** Continues from `seed`, the checksum of the bytes before; 0 at the beginning. */
  crc32c(bytes: Uint8Array, seed: number): number;
  /**
   * The next range of a file with data: [start, end); both are `end` if there is none before it.
   */
  nextData(descriptor: number, from: number, end: number): [number, number];

  /** See native-operations.ts. */
  fuseLoad(libfuse: string, directory: string): void;
  fuseInterceptions(): number;
  fuseRequests(): number;
  fuseOpenHandle(image: NativeImage, snapshot: string, writable: boolean, lent: boolean): number;
  fuseMoveHandle(
    fh: number,
    image: NativeImage,
    snapshot: string,
    writable: boolean,
    lent: boolean,
    refusesCached: boolean,
  ): void;
  fuseCloseHandle(fh: number): boolean;
  fuseGrantOpens(name: string, image: NativeImage): void;
  fuseTakeBackOpens(name: string): { fh: number; writable: boolean }[];
  fuseOnRelease(callback: (fh: number) => void): void;
  fuseOpener(fh: number): number;
  fuseForgetFlatFile(name: string): void;
  fuseForgetFilesIn(directory: string, present: string[]): void;
  fuseRemembered(): number;
  fuseTellFlatFile(
    name: string,
    device: bigint,
    inode: bigint,
    number: bigint,
    image: NativeImage,
    lent: boolean,
  ): void;
  fuseFlatFileChanged(name: string): void;
  fuseFlatFilesChanged(): void;
  fuseTraffic(image: NativeImage): Traffic;
  fuseCachedReads(image: NativeImage): number;
  fuseOnQuestion(
    callback: (
      ...question:
        | [id: number, kind: 'open' | 'write', fh: number, pid: number]
        | [id: number, kind: 'fetch', block: RemoteBlock]
    ) => void,
  ): void;
  fuseAnswer(id: number, result: number): void;
  fuseOnEnd(callback: () => void): void;

  /** See directory-lock.ts. */
  lockDirectory(directory: string): number;
  unlockDirectory(lock: number): void;

  /** See names.ts. */
  giveName(draft: string, name: string, replace: boolean): Promise<void>;
  addName(name: string, second: string): Promise<void>;
  removeName(name: string): Promise<void>;
  /** See file-lock.ts. */
  lockFile(path: string, byte: number, exclusive: boolean): Promise<number>;
  unlockFile(lock: number): void;
  /** See replace.ts and drafts.ts: `lock` is for unlockFile(). */
  makeDraft(name: string): Promise<{ path: string; lock: number }>;
  removeLeftDraft(path: string): Promise<boolean>;
  /** See places.ts. */
  checkDirectory(directory: string): Promise<void>;
  isPersistent(path: string): Promise<boolean>;
  /** See dependants.ts. */
  identify(path: string): Promise<NativeIdentity>;

  /** See run.ts. */
  checkMonitor(): boolean;
  become(words: string[], environment: string[]): never;

  /** See zstd.ts. */
  zstdCompress(bytes: Uint8Array, into: Uint8Array, level: number): Promise<number>;
  zstdDecompress(bytes: Uint8Array, into: Uint8Array): Promise<number>;
  zstdBound(length: number): number;

  /** See daemon.ts. */
  notifyManager(socket: string, text: string): void;
  logTo(file: string): void;

  /** See attach-server.ts. */
  AttachServer: new (
    path: string,
    storeBudget: number,
    onEvent: (event: NativeAttachEvent) => void,
  ) => NativeAttachServer;
}

let loaded: NativeAddon | undefined;

/**
 * The addon, loaded at the first call. RTLD_GLOBAL, because the linker must find its fuse_new
 * before libfuse's (native-operations.ts). If it were loaded another way first, that would be
 * impossible for the whole process.
 */
export function addon(): NativeAddon {
  if (loaded) return loaded;
  const module = { exports: {} };
  try {
    process.dlopen(module, ADDON, constants.dlopen.RTLD_NOW | constants.dlopen.RTLD_GLOBAL);
  } catch (cause) {
    throw new PcowError(
      'PCOW_UNSUPPORTED',
      existsSync(ADDON)
        ? `cannot load the native part of Pcow (${cause instanceof Error ? cause.message : String(cause)}): ${HOW_TO_BUILD}`
        : `the native part of Pcow is not built: ${HOW_TO_BUILD}`,
      { cause },
    );
  }
  loaded = module.exports as NativeAddon;
  return loaded;
}

/** `require` for CommonJS packages, relative to this package. */
export const requireModule = createRequire(import.meta.url);
