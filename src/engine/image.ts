/**
 * An image: one .pcow file, and the operations on it. docs/format.md describes what they do to the
 * file.
 *
 * Every method that returns a Promise works on another thread, concurrently with the others.
 * Changes of the structure (snapshot, rollback, delete, resize) of one image are done one after the
 * other. Every failure throws or rejects with a PcowError.
 *
 * The file is longer than others, because the class is the library's main interface and each method
 * has its documentation here.
 */
import { fromNative, isPcowError, PcowError, translated, translatedNow } from './errors.js';
import { extentsOf } from './extents.js';
import { lockStanding } from './file-lock.js';
import { type LongWork, runLong } from './long.js';
import { addon, type NativeBase, type NativeImage } from './native.js';
import { throughDraft } from './replace.js';
import type {
  BaseInfo,
  BaseOptions,
  ChainLink,
  CreateOptions,
  Extent,
  ImageInfo,
  LayerChoice,
  LayerInfo,
  LongOptions,
  MapOptions,
  OpenOptions,
  RemoteRanges,
  ScrubReport,
  SnapshotInfo,
  SnapshotOrigin,
} from './types.js';
import {
  checkBlockSize,
  checkBuffer,
  checkCreated,
  checkDepths,
  checkEntries,
  checkFlag,
  checkIdentity,
  checkLayer,
  checkLayerChoice,
  checkLength,
  checkOffset,
  checkOptions,
  checkPath,
  checkSignal,
  checkSize,
  checkSnapshotName,
} from './validate.js';

/**
 * An open image. Every failure throws, or rejects with, a PcowError; after close() it is
 * PCOW_CLOSED.
 */
export class Image {
  /** @internal For the mount's native operations (native-operations.ts) only. */
  readonly native: NativeImage;
  #closing: Promise<void> | undefined;

  private constructor(native: NativeImage) {
    this.native = native;
  }

  /**
   * Makes a new, empty image file. It gets its name only when it is complete and durable. If the
   * base's active layer has data, freeze that first: call Image.freezeForClone on the base. Errors:
   * PCOW_EXISTS, PCOW_INVALID, PCOW_NO_SPACE, PCOW_PERMISSION; PCOW_NOT_FOUND for the base; with
   * `force` PCOW_LOCKED and PCOW_IN_USE for the file that would be replaced.
   */
  static async create(path: string, options: CreateOptions): Promise<void> {
    checkPath('the path of the new image', path);
    checkOptions('the options of Image.create', options, ['size', 'blockSize', 'force', 'base']);
    const { force, ...rest } = options;
    checkFlag('the option "force"', force);
    const native = nativeCreateOptions(path, rest);
    const sources = options.base && [options.base.path];
    await standingOnBase(path, options.base, () =>
      force === true
        ? throughDraft(path, { replace: true, sources }, (draft) =>
            translated(() => addon().create(draft, { ...native, into: true })),
          )
        : translated(() => addon().create(path, { ...native, into: false })),
    );
  }

  /**
   * @internal The same in an empty draft (throughDraft). The caller holds the lock that keeps the
   *   base (standingOn).
   */
  static async createInDraft(draft: string, options: Omit<CreateOptions, 'force'>): Promise<void> {
    const native = nativeCreateOptions(draft, options);
    await translated(() => addon().create(draft, { ...native, into: true }));
  }

  /**
   * Opens an image and its chain. Without `write` it takes no lock, and sees the changes of another
   * process that writes the image. An image without references that was not closed is closed by the
   * garbage collector: late, and errors are lost. Errors: PCOW_NOT_FOUND, PCOW_NOT_AN_IMAGE,
   * PCOW_CORRUPT, PCOW_UNSUPPORTED, PCOW_PERMISSION, PCOW_LOCKED with `write`, and
   * PCOW_BASE_MISSING, _CHANGED, _LOOP, _OUTSIDE.
   */
  static async open(path: string, options: OpenOptions = {}): Promise<Image> {
    checkPath('the path of the image', path);
    checkOptions('the options of Image.open', options, ['write', 'baseRoot']);
    const { write, baseRoot } = options;
    checkFlag('the option "write"', write);
    if (baseRoot !== undefined) checkPath('the option "baseRoot"', baseRoot);
    return new Image(
      await translated(() => addon().open(path, write ?? false, baseRoot ?? '', false)),
    );
  }

  /**
   * The base of an image, as stored in the image; null: none. The base is not opened: `resolved` is
   * empty, and `snapshot` null. Errors: those of open() except the ones of bases.
   */
  static async baseOf(path: string): Promise<BaseInfo | null> {
    checkPath('the path of the image', path);
    const native = await translated(() => addon().open(path, false, '', true));
    try {
      return translatedNow(() => native.info()).base;
    } finally {
      await translated(() => native.close());
    }
  }

  /** From memory and fstat: takes no time. */
  info(): ImageInfo {
    const { lastError, ...info } = translatedNow(() => this.native.info());
    return {
      ...info,
      lastError: lastError && {
        time: new Date(lastError.time),
        error: fromNative(lastError.error) as PcowError,
      },
    };
  }

  /**
   * The size of the active layer in bytes. From memory; faster than info() if there are many
   * snapshots.
   */
  size(): number {
    return translatedNow(() => this.native.size());
  }

  /**
   * The snapshots of this image (not of its bases), oldest first. Counting their data reads their
   * tables. Without the count it takes no time, and `data` is 0.
   */
  snapshots({ countData = true } = {}): SnapshotInfo[] {
    return translatedNow(() => this.native.snapshots(countData)).map(withDate);
  }

  /** The layers from which the active layer, or a snapshot, reads: itself first. Takes no time. */
  chain(snapshot?: LayerChoice): ChainLink[] {
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    return translatedNow(() => this.native.chain(snapshot ?? ''));
  }

  /**
   * A text that identifies the layers from which the active layer, or a snapshot, reads: another
   * text means other layers. For MapOptions.chain.
   */
  async chainState(snapshot?: LayerChoice): Promise<string> {
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    // A batch that begins at the end contains nothing else.
    const batch = await translated(() =>
      this.native.map(Number.MAX_SAFE_INTEGER, snapshot ?? '', 0, 0),
    );
    return batch.chainState;
  }

  /**
   * All layers of this image (not of its bases) at one moment, including deleted ones on which
   * others stand. The active layer is last. Takes no time.
   */
  layers(): LayerInfo[] {
    return translatedNow(() => this.native.layers()).map(withDate);
  }

  /** One snapshot, without counting its data: takes no time. */
  snapshotInfo(name: string): SnapshotInfo {
    checkPath('the name of a snapshot', name);
    return withDate(translatedNow(() => this.native.snapshotInfo(name)));
  }

  /** The names only, oldest first: takes no time even for a large image. */
  snapshotNames(): string[] {
    return translatedNow(() => this.native.snapshotNames());
  }

  /**
   * Fills `buffer` with the bytes from `offset` on, of the active layer or of a snapshot. Returns
   * the number of bytes read, which is less than the buffer's length only at the end of the image.
   * Do not use the buffer until then. To read piece by piece while the image is in use, give the id
   * of the layer. Errors: PCOW_IO, PCOW_CORRUPT, PCOW_NOT_FOUND for the snapshot.
   */
  async read(buffer: Uint8Array, offset: number, snapshot?: LayerChoice): Promise<number> {
    checkBuffer(buffer);
    checkOffset(offset);
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    return translated(() => this.native.read(buffer, offset, snapshot ?? ''));
  }

  /**
   * Where the bytes of the active layer, or of a snapshot, are stored: extents in ascending order
   * that cover all of it. Holes take no time, even large ones. The walk covers one layer from
   * beginning to end. If a process writes to that layer meanwhile, each extent was right when it
   * was read. Errors: PCOW_NOT_FOUND if there is no such snapshot, or it is deleted during the
   * walk, or the image is rolled back; PCOW_BUSY if the image became smaller; PCOW_CANCELLED,
   * PCOW_CORRUPT.
   */
  map(options: MapOptions = {}): AsyncGenerator<Extent, void> {
    checkOptions('the options of Image.map', options, ['snapshot', 'depths', 'chain', 'signal']);
    const { snapshot, depths, chain, signal } = options;
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    if (depths !== undefined) checkDepths(depths);
    checkSignal(signal);
    const { first, end } = depths ?? { first: 0, end: Number.MAX_SAFE_INTEGER };
    const layer = this.#pinned(snapshot);
    return extentsOf(
      (offset) => translated(() => this.native.map(offset, layer(), first, end)),
      signal,
      {
        image: () => this.info().path,
        chain,
      },
    );
  }

  /**
   * The id of the chosen layer. It is looked up once, at the first call, because names may mean
   * other layers later.
   */
  #pinned(choice: LayerChoice | undefined): () => number {
    let id = typeof choice === 'number' ? choice : undefined;
    return () => (id ??= this.native.layerOf(typeof choice === 'string' ? choice : ''));
  }

  /**
   * The ranges of `to` that may differ from what `from` reads there, in sub-blocks and ascending
   * order, each with what `to` has there. All other ranges are equal. null: the active layer. Reads
   * the tables only, not the bytes. Errors as for map().
   */
  diff(
    from: LayerChoice | null,
    to: LayerChoice | null,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<Extent, void> {
    if (from !== null) checkLayerChoice(from);
    if (to !== null) checkLayerChoice(to);
    checkOptions('the options of Image.diff', options, ['signal']);
    checkSignal(options.signal);
    const before = this.#pinned(from ?? undefined);
    const after = this.#pinned(to ?? undefined);
    return extentsOf(
      (offset) => translated(() => this.native.changes(offset, before(), after())),
      options.signal,
      {
        image: () => this.info().path,
      },
    );
  }

  /**
   * The ranges in which a layer differs from the image's base, or from zeros if there is none: what
   * the layer, and the layers of this image on which it stands, hold. Otherwise like diff().
   */
  diffToBase(
    to: LayerChoice | null,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<Extent, void> {
    if (to !== null) checkLayerChoice(to);
    checkOptions('the options of Image.diffToBase', options, ['signal']);
    checkSignal(options.signal);
    const layer = this.#pinned(to ?? undefined);
    return extentsOf(
      (offset) => translated(() => this.native.changesToBase(offset, layer())),
      options.signal,
      {
        image: () => this.info().path,
      },
    );
  }

  /**
   * Writes the whole buffer, or fails; after a failure any part of it may have been written.
   * Durable after sync(). Returns the number of bytes written. Do not use the buffer until then.
   * Errors: PCOW_READ_ONLY, PCOW_NO_SPACE, PCOW_IO; PCOW_INVALID beyond the end.
   */
  async write(buffer: Uint8Array, offset: number): Promise<number> {
    checkBuffer(buffer);
    checkOffset(offset);
    await translated(() => this.native.write(buffer, offset));
    return buffer.length;
  }

  /**
   * The range reads as zeros afterwards; its whole blocks are given back to the disk after the next
   * sync. Errors as for write().
   */
  async discard(offset: number, length: number): Promise<void> {
    checkOffset(offset);
    checkLength(length);
    await translated(() => this.native.discard(offset, length));
  }

  /**
   * Everything written before is durable afterwards. Errors: PCOW_IO, PCOW_NO_SPACE. After one sync
   * has failed, every later one fails, too.
   */
  async sync(): Promise<void> {
    await translated(() => this.native.sync());
  }

  /**
   * Freezes the active layer under a name. Durable when the promise resolves. `origin`: the
   * snapshot was received from another image. Errors: PCOW_EXISTS, PCOW_INVALID for the name,
   * PCOW_LIMIT, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async snapshot(name: string, origin?: SnapshotOrigin): Promise<void> {
    checkSnapshotName(name);
    if (origin !== undefined) {
      checkIdentity(origin.identity);
      checkCreated(origin.created);
    }
    await translated(() =>
      this.native.snapshot(name, origin?.identity ?? null, origin?.created.getTime() ?? null),
    );
  }

  /**
   * Makes a new, empty active layer on that snapshot: what was written since is lost. No process
   * may have the image mapped. Errors: PCOW_NOT_FOUND, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async rollback(name: string): Promise<void> {
    checkSnapshotName(name);
    await translated(() => this.native.rollback(name));
  }

  /**
   * Renames a snapshot. It remains the same layer with the same identity: clones that stand on it,
   * and increments from it, continue to work. An automatic snapshot becomes an ordinary one.
   * Durable when the promise resolves. Errors: PCOW_NOT_FOUND, PCOW_EXISTS, PCOW_INVALID for the
   * name, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async renameSnapshot(from: string, to: string): Promise<void> {
    checkSnapshotName(from);
    checkSnapshotName(to);
    await translated(() => this.native.renameSnapshot(from, to));
  }

  /**
   * Deletes a snapshot. If it has one child, it is merged into it; if it has none, it is dropped;
   * if it has several, it is hidden until one is left. The caller must check whether other images
   * stand on it: see dependants(). When the deletion has begun, the name is gone. If it is stopped,
   * the merge is done by the next deletion, or when the image is next opened for writing. Errors:
   * PCOW_NOT_FOUND, PCOW_CANCELLED, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async delete(name: string, options: LongOptions = {}): Promise<void> {
    checkSnapshotName(name);
    await this.#long('delete', `the deletion of ${name}`, options, (cancellation, report) =>
      this.native.remove(name, cancellation, report),
    );
  }

  /**
   * Changes the size of the image. A smaller size needs `shrink`, which drops the data behind it;
   * otherwise it is PCOW_INVALID. A size below that of the snapshot or base on which the image
   * stands is always PCOW_INVALID.
   */
  async resize(size: number, options: { shrink?: boolean | undefined } = {}): Promise<void> {
    checkSize(size);
    checkOptions('the options of Image.resize', options, ['shrink']);
    checkFlag('the option "shrink"', options.shrink);
    await translated(() => this.native.resize(size, options.shrink ?? false));
  }

  /**
   * The id of a frozen layer that holds the image as it is now, for a clone to stand on. If the
   * active layer is empty, this is the newest frozen layer; otherwise a new automatic snapshot
   * named `name` is taken. Errors as for snapshot().
   */
  async freezeForClone(name: string): Promise<number> {
    checkSnapshotName(name);
    return translated(() => this.native.freezeForClone(name));
  }

  /**
   * The id of a snapshot's layer; for null that of the present active layer. Errors:
   * PCOW_NOT_FOUND.
   */
  layerOf(snapshot: string | null): number {
    if (snapshot !== null) checkSnapshotName(snapshot);
    return translatedNow(() => this.native.layerOf(snapshot ?? ''));
  }

  /**
   * Gives the image another base, or none, without looking at the content: an unsafe rebase. Errors
   * as for create().
   */
  async setBase(base: BaseOptions | null): Promise<void> {
    const native = nativeBase(base ?? undefined);
    await standingOnBase(this.info().path, base, () =>
      translated(() => this.native.setBase(native)),
    );
  }

  /** @internal The same for renameImage(), which holds the base's lock itself. */
  async moveBase(base: BaseOptions): Promise<void> {
    await translated(() => this.native.setBase(nativeBase(base)));
  }

  /**
   * Makes the image lazy: its layers may hold bytes that are still elsewhere, and `content` says
   * where. The engine does not look at it. null: nothing is remote any more, and the image becomes
   * an ordinary one again; PCOW_REMOTE if something is. Durable when the promise resolves.
   */
  async setSource(content: Uint8Array | null): Promise<void> {
    if (content !== null) checkBuffer(content);
    await translated(() => this.native.setSource(content));
  }

  /** The content that setSource() has stored; null: the image is not lazy. */
  async source(): Promise<Buffer | null> {
    return translated(() => this.native.source());
  }

  /**
   * The active layer, which holds nothing of these blocks, holds these sub-blocks from now on, and
   * their bytes are remote. `entries` has 8 bytes for each block: its number (32 bits, little
   * endian), the mask of the sub-blocks (16 bits), zeros. For an image that is being made.
   */
  async markRemote(entries: Uint8Array): Promise<void> {
    checkEntries(entries);
    await translated(() => this.native.markRemote(entries));
  }

  /**
   * Stores the bytes of remote sub-blocks of a frozen layer: `data` has whole blocks from `block`
   * on, or ends with the layer. What is not remote is ignored. Returns how many blocks were filled;
   * after a power cut some of these may be remote again. Errors: PCOW_NOT_FOUND for the layer,
   * PCOW_INVALID, PCOW_NO_SPACE, PCOW_IO, PCOW_READ_ONLY.
   */
  async fill(layer: number, block: number, data: Uint8Array): Promise<number> {
    checkLayer(layer);
    checkOffset(block);
    checkBuffer(data);
    return translated(() => this.native.fill(layer, block, data));
  }

  /**
   * Makes blocks of a snapshot's layer remote again, and frees their disk space; `entries` as for
   * markRemote(). Only blocks of which the layer holds exactly these sub-blocks are given back: says
   * for each whether that is so. Errors: PCOW_BUSY while the image's structure is being changed,
   * PCOW_IO, PCOW_READ_ONLY.
   */
  async giveBack(layer: number, entries: Uint8Array): Promise<boolean[]> {
    checkLayer(layer);
    checkEntries(entries);
    return Array.from(await translated(() => this.native.giveBack(layer, entries)), Boolean);
  }

  /**
   * Whether this process has read one of these blocks of a layer, through any opening, since the
   * last call about it.
   */
  async takeUses(layer: number, block: number, count: number): Promise<boolean> {
    return translated(() => this.native.takeUses(layer, block, count));
  }

  /** Bytes that the layers hold, and that have not been fetched yet. Reads all tables. */
  async remoteBytes(): Promise<number> {
    return translated(() => this.native.remoteBytes());
  }

  /**
   * The remote sub-blocks of a layer, from block `from` on: 0 first, then the `next` of the call
   * before; null: there are no more.
   */
  async remoteRanges(layer: number, from: number): Promise<RemoteRanges> {
    checkLayer(layer);
    checkOffset(from);
    const { blocks, next } = await translated(() => this.native.remoteBlocks(layer, from));
    const ranges: RemoteRanges['ranges'] = [];
    for (let at = 0; at < blocks.length; at += 2)
      ranges.push({ block: blocks[at]!, mask: blocks[at + 1]! });
    return { ranges, next };
  }

  /**
   * `method` and `what` name the work in messages, for example `delete` and `the deletion of s1`.
   */
  async #long<T>(
    method: string,
    what: string,
    options: LongOptions,
    work: LongWork<T>,
  ): Promise<T> {
    return runLong(`Image.${method}`, () => `${this.info().path}: ${what}`, options, work);
  }

  /**
   * The same for an image whose base may be missing. No process may have the image open for
   * writing.
   */
  static async setBaseBlindly(path: string, base: BaseOptions | null): Promise<void> {
    checkPath('the path of the image', path);
    const native = nativeBase(base ?? undefined);
    await standingOnBase(path, base, () => translated(() => addon().setBaseBlindly(path, native)));
  }

  /**
   * Gives the image another base, or (null) none, and copies what differs between the two: the
   * contents of the image and its snapshots do not change. If it is stopped, the image keeps its
   * base.
   */
  async rebase(base: BaseOptions | null, options: LongOptions = {}): Promise<void> {
    const native = nativeBase(base ?? undefined);
    await standingOnBase(this.info().path, base, () =>
      this.#long('rebase', 'the change of its base', options, (cancellation, report) =>
        this.native.rebase(native, cancellation, report),
      ),
    );
  }

  /**
   * Moves what this image has written into `base`, its base, which must be open for writing, as a
   * new snapshot `name` there. Afterwards the image is empty, stands on that snapshot, and reads as
   * before. It must have no snapshots. Returns whether the base's own content changed as well,
   * which is so if the base has written nothing since; then no process may have the base mapped.
   */
  async commitInto(
    base: Image,
    name: string,
    options: LongOptions & { automatic?: boolean } = {},
  ): Promise<boolean> {
    if (!(base instanceof Image))
      throw new PcowError('PCOW_INVALID', 'the base must be an open image');
    checkSnapshotName(name);
    const { automatic = false, ...rest } = options;
    return this.#long('commitInto', `the commit of ${name}`, rest, (cancellation, report) =>
      this.native.commitInto(base.native, name, automatic, cancellation, report),
    );
  }

  /** Gives back blocks of the image and of its snapshots that hold only zeros. */
  async compact(options: LongOptions = {}): Promise<void> {
    await this.#long('compact', 'compacting', options, (cancellation, report) =>
      this.native.compact(cancellation, report),
    );
  }

  /**
   * Makes checksums for the data of snapshots that have none. A read of data with a checksum fails
   * with PCOW_CORRUPT if the bytes have changed on the disk. An older pcow that does not support
   * checksums cannot write an image that has some. Other operations continue meanwhile; with
   * `background` this work has lower priority than they.
   */
  async addChecksums(
    options: LongOptions & { background?: boolean | undefined } = {},
  ): Promise<void> {
    const { background, ...rest } = options;
    checkFlag('the option "background"', background);
    await this.#long('addChecksums', 'making checksums', rest, (cancellation, report) =>
      this.native.addChecksums(background ?? false, cancellation, report),
    );
  }

  /** Removes all checksums: damaged data then reads as it is on the disk. */
  async removeChecksums(): Promise<void> {
    await translated(() => this.native.removeChecksums());
  }

  /**
   * Reads everything that has checksums from the disk, and reports the damage. Fails only if that
   * cannot be completed.
   */
  async scrub(options: LongOptions = {}): Promise<ScrubReport> {
    return this.#long('scrub', 'the scrub', options, (cancellation, report) =>
      this.native.scrub(cancellation, report),
    );
  }

  /**
   * Waits for operations in progress, syncs, marks the image as clean and releases the lock. Later
   * operations fail with PCOW_CLOSED. A second call returns the same Promise. Errors as for sync();
   * the image is closed nevertheless.
   */
  close(): Promise<void> {
    this.#closing ??= translated(() => this.native.close());
    return this.#closing;
  }

  /** `await using image = await Image.open(…)` closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * One snapshot of several images, which is one cut across them: if a write is in the snapshot of
 * one image, every earlier write is in those of the others.
 */
export async function snapshotTogether(name: string, images: Image[]): Promise<void> {
  checkSnapshotName(name);
  if (!Array.isArray(images) || images.length === 0) {
    throw new PcowError('PCOW_INVALID', 'a snapshot of several images needs at least one image');
  }
  for (const image of images) {
    if (!(image instanceof Image)) {
      throw new PcowError(
        'PCOW_INVALID',
        'a snapshot of several images needs an array of open images',
      );
    }
  }
  if (new Set(images).size < images.length) {
    throw new PcowError(
      'PCOW_INVALID',
      `an image is listed twice for the snapshot ${JSON.stringify(name)}`,
    );
  }
  await translated(() =>
    addon().snapshotTogether(
      images.map(({ native }) => native),
      name,
    ),
  );
}

function withDate<T extends { created: number }>(
  described: T,
): Omit<T, 'created'> & { created: Date } {
  return { ...described, created: new Date(described.created) };
}

/**
 * Runs work that makes the image `path` stand on a base, if there is one. The base keeps its layers
 * meanwhile.
 */
async function standingOnBase(
  path: string,
  base: BaseOptions | null | undefined,
  work: () => Promise<void>,
): Promise<void> {
  if (base == null) return work();
  const lock = await lockStanding(base.path, 'shared').catch((error: unknown) => {
    if (!isPcowError(error) || error.code === 'PCOW_BUSY') throw error;
    const why = error.code === 'PCOW_NOT_FOUND' ? ', which does not exist' : `: ${error.message}`;
    throw new PcowError('PCOW_BASE_MISSING', `${path} stands on ${base.path}${why}`, {
      errno: error.errno,
    });
  });
  try {
    await work();
  } finally {
    lock.release();
  }
}

function nativeCreateOptions(
  path: string,
  { size, blockSize, base }: Omit<CreateOptions, 'force'>,
) {
  if (size !== undefined) checkSize(size);
  else if (!base)
    throw new PcowError(
      'PCOW_INVALID',
      `${path} needs a size: only an image that stands on a base has a default`,
    );
  if (blockSize !== undefined) checkBlockSize(blockSize);
  return { size: size ?? 0, blockSize: blockSize ?? 0, base: nativeBase(base) };
}

function nativeBase(base: BaseOptions | undefined): NativeBase | null {
  if (base === undefined) return null;
  checkOptions('the base', base, ['path', 'snapshot', 'layer']);
  const { path, snapshot, layer } = base;
  checkPath('the path of the base', path);
  if ((snapshot === undefined) === (layer === undefined)) {
    throw new PcowError(
      'PCOW_INVALID',
      `the base ${path} needs the name of a snapshot or the id of a layer, and not both`,
    );
  }
  if (snapshot !== undefined) checkSnapshotName(snapshot);
  if (layer !== undefined) checkLayer(layer);
  return { path, snapshot: snapshot ?? '', layer: layer ?? 0 };
}
