/**
 * An image: one .pcow file, and the operations on it. See docs/format.md for what they do to the file.
 *
 * Every method that returns a Promise works on another thread, beside the others; changes of structure (snapshot,
 * rollback, delete, resize) on one image follow one another. Everything that fails throws or rejects with a PcowError.
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
  ScrubReport,
  SnapshotInfo,
  SnapshotOrigin,
} from './types.js';
import {
  checkBlockSize,
  checkBuffer,
  checkCreated,
  checkDepths,
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

/** An open image. Everything that fails throws, or rejects with, a PcowError; after close() that is PCOW_CLOSED. */
export class Image {
  /** @internal For the mount's native operations (native-operations.ts) only. */
  readonly native: NativeImage;
  #closing: Promise<void> | undefined;

  private constructor(native: NativeImage) {
    this.native = native;
  }

  /**
   * Makes a new, empty image file. It appears under its name only when it is complete and durable.
   * Where the base's active layer holds data, freeze that first: Image.freezeForClone on the base.
   * Errors: PCOW_EXISTS, PCOW_INVALID, PCOW_NO_SPACE, PCOW_PERMISSION; PCOW_NOT_FOUND of the base; with `force` PCOW_LOCKED and
   * PCOW_IN_USE of what would be replaced.
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

  /** @internal The same in an empty draft (throughDraft). The caller holds what keeps the base from going (standingOn). */
  static async createInDraft(draft: string, options: Omit<CreateOptions, 'force'>): Promise<void> {
    const native = nativeCreateOptions(draft, options);
    await translated(() => addon().create(draft, { ...native, into: true }));
  }

  /**
   * Opens an image and its chain. Without `write` it takes no lock, and sees what another process writes.
   * An image that is let go without close() is closed when it is collected as garbage: late, and with errors lost.
   * Errors: PCOW_NOT_FOUND, PCOW_NOT_AN_IMAGE, PCOW_CORRUPT, PCOW_UNSUPPORTED, PCOW_PERMISSION, PCOW_LOCKED with `write`, and
   * PCOW_BASE_MISSING, _CHANGED, _LOOP, _OUTSIDE.
   */
  static async open(path: string, options: OpenOptions = {}): Promise<Image> {
    checkPath('the path of the image', path);
    checkOptions('the options of Image.open', options, ['write', 'baseRoot']);
    const { write, baseRoot } = options;
    checkFlag('the option "write"', write);
    if (baseRoot !== undefined) checkPath('the option "baseRoot"', baseRoot);
    return new Image(await translated(() => addon().open(path, write ?? false, baseRoot ?? '', false)));
  }

  /**
   * What an image stands on, as it is written in it; null: nothing. The base is not looked for: `resolved` is empty, and `snapshot`
   * null. Errors: those of open() without the ones of bases.
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
      lastError: lastError && { time: new Date(lastError.time), error: fromNative(lastError.error) as PcowError },
    };
  }

  /** Bytes of the active layer. From memory, and quicker than info() where there are many snapshots. */
  size(): number {
    return translatedNow(() => this.native.size());
  }

  /**
   * The snapshots of this image (not of its bases), oldest first. Counting their data reads their tables; without, it
   * takes no time, and `data` is 0.
   */
  snapshots({ countData = true } = {}): SnapshotInfo[] {
    return translatedNow(() => this.native.snapshots(countData)).map(withDate);
  }

  /** The layers that the active layer, or a snapshot, reads from: itself first. Takes no time. */
  chain(snapshot?: LayerChoice): ChainLink[] {
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    return translatedNow(() => this.native.chain(snapshot ?? ''));
  }

  /** Stands for the layers that the active layer, or a snapshot, reads from: another text means that they are others. For MapOptions.chain. */
  async chainState(snapshot?: LayerChoice): Promise<string> {
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    // A batch that begins at the end holds nothing else.
    const batch = await translated(() => this.native.map(Number.MAX_SAFE_INTEGER, snapshot ?? '', 0, 0));
    return batch.chainState;
  }

  /** All layers of this image (not of its bases) at one moment, also deleted ones that others stand on; the active layer last. Takes no time. */
  layers(): LayerInfo[] {
    return translatedNow(() => this.native.layers()).map(withDate);
  }

  /** One snapshot, without a count of its data: takes no time. */
  snapshotInfo(name: string): SnapshotInfo {
    checkPath('the name of a snapshot', name);
    return withDate(translatedNow(() => this.native.snapshotInfo(name)));
  }

  /** Only the names, oldest first: takes no time however large the image. */
  snapshotNames(): string[] {
    return translatedNow(() => this.native.snapshotNames());
  }

  /**
   * Fills `buffer` from `offset` on, of the active layer or of a snapshot. Returns the bytes read: fewer than the
   * buffer holds only at the end of the image. The buffer must stay untouched until then. Errors: PCOW_IO, PCOW_CORRUPT,
   * PCOW_NOT_FOUND of the snapshot. Whoever reads piece by piece while the image is in use names the layer by its id.
   */
  async read(buffer: Uint8Array, offset: number, snapshot?: LayerChoice): Promise<number> {
    checkBuffer(buffer);
    checkOffset(offset);
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    return translated(() => this.native.read(buffer, offset, snapshot ?? ''));
  }

  /**
   * Where the bytes of the active layer, or of a snapshot, are: extents in ascending order that cover all of it. Holes cost
   * nothing, however large. The walk is of one layer from its begin to its end. While somebody writes to that, what is listed was right
   * when it was looked at. Errors: PCOW_NOT_FOUND of the snapshot, also where it is deleted during the walk, or the image rolled back;
   * PCOW_BUSY where the image became smaller; PCOW_CANCELLED, PCOW_CORRUPT.
   */
  map(options: MapOptions = {}): AsyncGenerator<Extent, void> {
    checkOptions('the options of Image.map', options, ['snapshot', 'depths', 'chain', 'signal']);
    const { snapshot, depths, chain, signal } = options;
    if (snapshot !== undefined) checkLayerChoice(snapshot);
    if (depths !== undefined) checkDepths(depths);
    checkSignal(signal);
    const { first, end } = depths ?? { first: 0, end: Number.MAX_SAFE_INTEGER };
    const layer = this.#pinned(snapshot);
    return extentsOf((offset) => translated(() => this.native.map(offset, layer(), first, end)), signal, {
      image: () => this.info().path,
      chain,
    });
  }

  /** The id of the layer that is meant, looked up once, at the first call: names may mean other layers later. */
  #pinned(choice: LayerChoice | undefined): () => number {
    let id = typeof choice === 'number' ? choice : undefined;
    return () => (id ??= this.native.layerOf(typeof choice === 'string' ? choice : ''));
  }

  /**
   * The ranges of `to` that may differ from what `from` reads there, by sub-blocks and in ascending order, each with what `to`
   * has there. Elsewhere the two are equal. null: the active layer. It looks only at tables, not at the bytes. Errors as those of map().
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
    return extentsOf((offset) => translated(() => this.native.changes(offset, before(), after())), options.signal, {
      image: () => this.info().path,
    });
  }

  /**
   * The ranges in which a layer differs from the image's base, or from nothing: what it and the layers of this image that it stands on
   * hold. As diff() otherwise.
   */
  diffToBase(to: LayerChoice | null, options: { signal?: AbortSignal | undefined } = {}): AsyncGenerator<Extent, void> {
    if (to !== null) checkLayerChoice(to);
    checkOptions('the options of Image.diffToBase', options, ['signal']);
    checkSignal(options.signal);
    const layer = this.#pinned(to ?? undefined);
    return extentsOf((offset) => translated(() => this.native.changesToBase(offset, layer())), options.signal, {
      image: () => this.info().path,
    });
  }

  /**
   * Writes the whole buffer, or fails; after a failure any part of it may have been written. Durable after sync().
   * Returns the bytes written. The buffer must stay untouched until then. Errors: PCOW_READ_ONLY, PCOW_NO_SPACE, PCOW_IO; PCOW_INVALID
   * beyond the end.
   */
  async write(buffer: Uint8Array, offset: number): Promise<number> {
    checkBuffer(buffer);
    checkOffset(offset);
    await translated(() => this.native.write(buffer, offset));
    return buffer.length;
  }

  /** The range reads as zeros afterwards; whole blocks of it go back to the disk after the next sync. Errors as those of write(). */
  async discard(offset: number, length: number): Promise<void> {
    checkOffset(offset);
    checkLength(length);
    await translated(() => this.native.discard(offset, length));
  }

  /** Everything written before is durable afterwards. Errors: PCOW_IO, PCOW_NO_SPACE; one that failed makes every later one fail too. */
  async sync(): Promise<void> {
    await translated(() => this.native.sync());
  }

  /**
   * Freezes the active layer under a name. Durable when it returns. `origin`: it is another image's snapshot, received.
   * Errors: PCOW_EXISTS, PCOW_INVALID of the name, PCOW_LIMIT, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async snapshot(name: string, origin?: SnapshotOrigin): Promise<void> {
    checkSnapshotName(name);
    if (origin !== undefined) {
      checkIdentity(origin.identity);
      checkCreated(origin.created);
    }
    await translated(() => this.native.snapshot(name, origin?.identity ?? null, origin?.created.getTime() ?? null));
  }

  /**
   * A new, empty active layer on that snapshot: what was written since is gone. Nobody may have the image mapped.
   * Errors: PCOW_NOT_FOUND, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async rollback(name: string): Promise<void> {
    checkSnapshotName(name);
    await translated(() => this.native.rollback(name));
  }

  /**
   * Gives a snapshot another name. It stays the same layer with the same identity: clones that stand on it, and increments that are sent
   * from it, go on. An automatic one is one like any other from then on. Durable when it returns.
   * Errors: PCOW_NOT_FOUND, PCOW_EXISTS, PCOW_INVALID of the name, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async renameSnapshot(from: string, to: string): Promise<void> {
    checkSnapshotName(from);
    checkSnapshotName(to);
    await translated(() => this.native.renameSnapshot(from, to));
  }

  /**
   * Deletes a snapshot: merged into its only child; dropped where it has none; hidden, until one is left, where it has
   * several. Images of other files that stand on it are the caller's to check: see dependants().
   * Once it has begun, the snapshot is gone by name; stopping it puts the merge off until the next deletion, or until the
   * image is next opened for writing. Errors: PCOW_NOT_FOUND, PCOW_CANCELLED, PCOW_NO_SPACE, PCOW_READ_ONLY.
   */
  async delete(name: string, options: LongOptions = {}): Promise<void> {
    checkSnapshotName(name);
    await this.#long('delete', `the deletion of ${name}`, options, (cancellation, report) =>
      this.native.remove(name, cancellation, report),
    );
  }

  /**
   * Gives the image `size` bytes. A smaller size is PCOW_INVALID without `shrink`, which throws away what lies behind it,
   * and always where it is below that of the snapshot or base that the image stands on.
   */
  async resize(size: number, options: { shrink?: boolean | undefined } = {}): Promise<void> {
    checkSize(size);
    checkOptions('the options of Image.resize', options, ['shrink']);
    checkFlag('the option "shrink"', options.shrink);
    await translated(() => this.native.resize(size, options.shrink ?? false));
  }

  /**
   * The id of a frozen layer that holds the image as it is now, for a clone to stand on: the newest one where the
   * active layer is empty, else that of a new automatic snapshot called `name`. Errors as those of snapshot().
   */
  async freezeForClone(name: string): Promise<number> {
    checkSnapshotName(name);
    return translated(() => this.native.freezeForClone(name));
  }

  /** The id of a snapshot's layer; null: of the layer that is active now. Errors: PCOW_NOT_FOUND. */
  layerOf(snapshot: string | null): number {
    if (snapshot !== null) checkSnapshotName(snapshot);
    return translatedNow(() => this.native.layerOf(snapshot ?? ''));
  }

  /** Points the image at another base, or at none, without looking at the content: an unsafe rebase. Errors as those of create(). */
  async setBase(base: BaseOptions | null): Promise<void> {
    const native = nativeBase(base ?? undefined);
    await standingOnBase(this.info().path, base, () => translated(() => this.native.setBase(native)));
  }

  /** @internal The same for renameImage(), which holds the lock of the base itself. */
  async moveBase(base: BaseOptions): Promise<void> {
    await translated(() => this.native.setBase(nativeBase(base)));
  }

  /** `method` and `what` name the work in messages, for example `delete` and `the deletion of s1`. */
  async #long<T>(method: string, what: string, options: LongOptions, work: LongWork<T>): Promise<T> {
    return runLong(`Image.${method}`, () => `${this.info().path}: ${what}`, options, work);
  }

  /**
   * The same for an image whose base need not be there any more. Nobody may have the image open for writing.
   */
  static async setBaseBlindly(path: string, base: BaseOptions | null): Promise<void> {
    checkPath('the path of the image', path);
    const native = nativeBase(base ?? undefined);
    await standingOnBase(path, base, () => translated(() => addon().setBaseBlindly(path, native)));
  }

  /**
   * Points the image at another base, or (null) at none, and copies what the two hold differently: neither the image nor
   * its snapshots change. Where it is stopped, the image stands where it stood.
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
   * Moves what this image has written into `base`, its base, opened for writing, as a new snapshot `name` there; the image
   * stands on that afterwards, empty, and reads as before. It must have no snapshots. Returns whether the base's own content
   * went along, which it does where the base has written nothing since; nobody may have the base mapped then.
   */
  async commitInto(base: Image, name: string, options: LongOptions & { automatic?: boolean } = {}): Promise<boolean> {
    if (!(base instanceof Image)) throw new PcowError('PCOW_INVALID', 'the base must be an open image');
    checkSnapshotName(name);
    const { automatic = false, ...rest } = options;
    return this.#long('commitInto', `the commit of ${name}`, rest, (cancellation, report) =>
      this.native.commitInto(base.native, name, automatic, cancellation, report),
    );
  }

  /** Gives back blocks that hold nothing but zeros, of the image and of its snapshots. */
  async compact(options: LongOptions = {}): Promise<void> {
    await this.#long('compact', 'compacting', options, (cancellation, report) =>
      this.native.compact(cancellation, report),
    );
  }

  /**
   * Makes checksums of what snapshots hold, where they have none: whoever reads what has one gets an error (PCOW_CORRUPT)
   * instead of bytes that have changed on the disk. An image with checksums can't be written by a pcow that does not know them.
   * Everything else goes on meanwhile; with `background` it gives way to that.
   */
  async addChecksums(options: LongOptions & { background?: boolean | undefined } = {}): Promise<void> {
    const { background, ...rest } = options;
    checkFlag('the option "background"', background);
    await this.#long('addChecksums', 'making checksums', rest, (cancellation, report) =>
      this.native.addChecksums(background ?? false, cancellation, report),
    );
  }

  /** Takes all checksums away: what is damaged reads as it lies on the disk from then on. */
  async removeChecksums(): Promise<void> {
    await translated(() => this.native.removeChecksums());
  }

  /** Reads all that has checksums from the disk, and tells what is damaged. Fails only where that can't be completed. */
  async scrub(options: LongOptions = {}): Promise<ScrubReport> {
    return this.#long('scrub', 'the scrub', options, (cancellation, report) => this.native.scrub(cancellation, report));
  }

  /**
   * Syncs, sets the clean flag and gives up the lock, after what is under way has ended. Operations that start later
   * fail with PCOW_CLOSED. May be called again: the same Promise. Errors as those of sync(); the image is closed all the same.
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

/** One snapshot of several images, which is one cut across them: no write is in one of them that came after a write missing in another. */
export async function snapshotTogether(name: string, images: Image[]): Promise<void> {
  checkSnapshotName(name);
  if (!Array.isArray(images) || images.length === 0) {
    throw new PcowError('PCOW_INVALID', 'a snapshot across images needs at least one image');
  }
  for (const image of images) {
    if (!(image instanceof Image)) {
      throw new PcowError('PCOW_INVALID', 'a snapshot across images takes a list of open images');
    }
  }
  if (new Set(images).size < images.length) {
    throw new PcowError(
      'PCOW_INVALID',
      `an image is named twice in the snapshot ${JSON.stringify(name)} across images`,
    );
  }
  await translated(() =>
    addon().snapshotTogether(
      images.map(({ native }) => native),
      name,
    ),
  );
}

function withDate<T extends { created: number }>(described: T): Omit<T, 'created'> & { created: Date } {
  return { ...described, created: new Date(described.created) };
}

/** Runs work that makes the image `path` stand on a base, where it is to stand on any. The base keeps its layers meanwhile. */
async function standingOnBase(
  path: string,
  base: BaseOptions | null | undefined,
  work: () => Promise<void>,
): Promise<void> {
  if (base == null) return work();
  const lock = await lockStanding(base.path, 'shared').catch((error: unknown) => {
    if (!isPcowError(error) || error.code === 'PCOW_BUSY') throw error;
    const why = error.code === 'PCOW_NOT_FOUND' ? ', which is not there' : `: ${error.message}`;
    throw new PcowError('PCOW_BASE_MISSING', `${path} stands on ${base.path}${why}`, { errno: error.errno });
  });
  try {
    await work();
  } finally {
    lock.release();
  }
}

function nativeCreateOptions(path: string, { size, blockSize, base }: Omit<CreateOptions, 'force'>) {
  if (size !== undefined) checkSize(size);
  else if (!base) throw new PcowError('PCOW_INVALID', `${path} needs a size: only an image on a base has a default`);
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
