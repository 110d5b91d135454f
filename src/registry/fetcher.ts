/**
 * Fetches the remote pieces of a lazy image: those that a reader waits for, those that it will need
 * next, or all. Whatever is wanted is in `#wanted` once, so all who wait for a piece share one
 * request; neighbours share one, too. A piece is stored in the image only after its digests have
 * been checked.
 *
 * A reader waits as long as it takes, because a guest cannot do anything else: its pieces are
 * fetched again and again, with growing pauses. Other pieces are given up after the usual tries.
 */
import { type Image, isPcowError, PcowError } from '../engine/index.js';
import { type Content, contentOf, framesOf } from './frames.js';
import { bytesOf, HeldPieces } from './held-pieces.js';
import { dataOf, type LazyLayer, type LazyLayers, lazyLayersOf } from './lazy-layers.js';
import { withoutLimit } from './lazy-source.js';
import { PIECE, type Piece, runsOf } from './piece-index.js';
import { ReadAhead } from './read-ahead.js';
import { Sessions } from './session.js';
import { cancelled } from './store.js';
import { MOST_TOUCHES, type Touch } from './trace.js';

/** Requests at the same time; and how many of them for pieces that no reader waits for. */
const WIDTH = 8;
const WIDTH_AHEAD = 6;
/** Bytes of the blob that one request fetches, unless one piece has more. */
const GROUP = 1 << 20;
/** Pieces of one request: this bounds the memory if they compress well. */
const GROUP_PIECES = 16;
/** Pieces that prefetch() wants at the same time. */
const PREFETCHED_AT_ONCE = 96;
/** Milliseconds before a piece that a reader waits for is tried again; doubled each time. */
const PAUSE = 1000;
const LONGEST_PAUSE = 30_000;

/** What is heard of a fetcher. */
export interface FetcherEvents {
  /** The registry does not give what a reader needs: once, until it does again. */
  onTrouble?: ((error: Error) => void) | undefined;
  /** It does again, after so many milliseconds. */
  onRecovery?: ((milliseconds: number) => void) | undefined;
}

/** What a fetcher is doing. */
export interface FetchState {
  /** With the digest of the manifest. */
  reference: string;
  /** What a reader waits for, for the longest time; null: none waits. */
  waiting: {
    since: Date;
    /** The snapshot that has the bytes. */
    snapshot: string;
    /** Bytes of the image. */
    offset: number;
    /** Why it has not arrived; null: it is under way. */
    problem: string | null;
  } | null;
  /** The most bytes that the image keeps of what was fetched; null: it keeps everything. */
  limit: number | null;
  /** Since the fetcher began, as are the following. */
  givenBackBytes: number;
  requests: number;
  /** Bytes of the data blobs that have arrived. */
  fetchedBytes: number;
}

class Wanted {
  /** null: no reader waits for it. */
  since: Date | null = null;
  /** It is in no queue, or what is there of it does not count. */
  underWay = false;
  failures = 0;
  problem: string | null = null;
  pause: NodeJS.Timeout | null = null;
  readonly promise: Promise<void>;
  resolve!: () => void;
  reject!: (error: unknown) => void;

  constructor(
    readonly layer: LazyLayer,
    readonly at: number,
  ) {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.promise.catch(() => undefined); // maybe nothing waits for it
  }

  get piece(): Piece {
    return this.layer.index.piece(this.at);
  }
}

export class Fetcher {
  readonly #layers: ReadonlyMap<number, LazyLayer>;
  /** What readers have needed, or will need soon, in this order. */
  readonly #touched = new Map<string, Touch>();
  readonly #sessions: Sessions;
  readonly #readAhead = new ReadAhead();
  readonly #blockSize: number;
  readonly #wanted = new Map<LazyLayer, Map<number, Wanted>>();
  /** The order in which they are fetched: what readers wait for comes first. */
  readonly #urgent: Wanted[] = [];
  readonly #others: Wanted[] = [];
  readonly #running = new Set<Promise<void>>();
  readonly #end = new AbortController();
  #trouble: { since: number; error: Error } | null = null;
  #requests = 0;
  #fetchedBytes = 0;
  #pumping = false;
  #complete = false;
  /** null: it keeps everything. */
  #held: HeldPieces | null = null;

  private constructor(
    private readonly image: Image,
    private readonly source: LazyLayers,
    private readonly events: FetcherEvents,
  ) {
    this.#layers = source.layers;
    this.#blockSize = image.info().blockSize;
    const { limit } = source.origin;
    if (limit !== null)
      this.#held = new HeldPieces(image, this.#blockSize, this.#layers.values(), limit);
    this.#sessions = new Sessions(source.origin, {
      signal: this.#end.signal,
      onFailure: (error) => {
        this.#noteTrouble(error);
      },
    });
  }

  /** `image`: open for writing; it must stay so. null: it is not lazy. */
  static async open(image: Image, events: FetcherEvents = {}): Promise<Fetcher | null> {
    const source = await lazyLayersOf(image);
    return source && new Fetcher(image, source, events);
  }

  /**
   * Resolves when the block has been filled. Fails only if that is impossible, or at the end of the
   * fetcher.
   */
  async fetch(layerId: number, block: number): Promise<void> {
    const layer = this.#layers.get(layerId);
    const at = layer?.index.find(Math.floor((block * this.#blockSize) / PIECE)) ?? null;
    if (layer === undefined || at === null || layer.index.piece(at).stored === 0) {
      throw new PcowError(
        'PCOW_CORRUPT',
        `${this.image.info().path} lacks bytes that its source does not have: they are gone`,
        { next: 'pull the image again' },
      );
    }
    if (!layer.isRemote(at)) {
      const { ranges } = await this.image.remoteRanges(layerId, block);
      if (ranges[0]?.block !== block) return;
      layer.setRemote(at, true);
    }
    if (this.#touched.size === 0) this.#followTrace();
    const wanted = this.#want(layer, at, true);
    this.#touch(layer, at);
    let room = this.#roomAhead();
    for (const ahead of this.#readAhead.after(layer, at)) {
      if (!layer.isRemote(ahead)) continue;
      room -= bytesOf(layer.index.piece(ahead), this.#blockSize);
      if (room < 0) break;
      this.#want(layer, ahead, false);
      this.#touch(layer, ahead);
    }
    return wanted.promise;
  }

  /** What readers have asked for, and what was fetched ahead of them or because of a trace. */
  get trace(): Touch[] {
    return [...this.#touched.values()];
  }

  /** The first reader is the beginning of what a trace tells about. */
  #followTrace(): void {
    let room = this.#roomAhead();
    const byPosition = new Map([...this.#layers.values()].map((it) => [it.position, it]));
    for (const { layer, piece } of this.source.origin.trace) {
      const known = byPosition.get(layer);
      const at = known?.index.find(piece) ?? null;
      if (known === undefined || at === null || !known.isRemote(at)) continue;
      room -= bytesOf(known.index.piece(at), this.#blockSize);
      if (room < 0) break;
      this.#want(known, at, false);
      this.#touch(known, at);
    }
  }

  /** Bytes. What is fetched ahead must not push out what readers have just been given. */
  #roomAhead(): number {
    return this.#held === null ? Infinity : this.#held.limit / 4;
  }

  #touch({ position, index }: LazyLayer, at: number): void {
    if (this.#touched.size === MOST_TOUCHES) return;
    const { number: piece } = index.piece(at);
    this.#touched.set(`${position} ${piece}`, { layer: position, piece });
  }

  /** The image keeps everything from now on. */
  async removeLimit(): Promise<void> {
    const source = await this.image.source();
    if (this.#held === null || source === null) return;
    await this.image.setSource(withoutLimit(source));
    this.#held = null;
  }

  /**
   * Fetches everything that is still remote. Fails if the registry fails; with PCOW_LIMIT if the
   * image may not keep everything.
   */
  async prefetch({ signal, onProgress }: Prefetching = {}): Promise<void> {
    const layers = [...this.#layers.values()];
    this.#mustFit(layers);
    const total = layers.reduce((sum, { remoteBytes }) => sum + remoteBytes, 0);
    let done = 0;
    onProgress?.(done, total);
    const stop = new Promise<never>((_, reject) => {
      signal?.addEventListener('abort', () => reject(cancelled('the prefetch', signal)));
    });
    stop.catch(() => undefined);
    const open = new Set<Promise<void>>();
    for (const layer of layers) {
      for (const at of layer.remote()) {
        if (signal?.aborted) throw cancelled('the prefetch', signal);
        const one = this.#want(layer, at, false).promise.then(() => {
          open.delete(one);
          done += dataOf(layer.index.piece(at));
          onProgress?.(done, total);
        });
        open.add(one);
        one.catch(() => undefined); // the race below reports it
        while (open.size >= PREFETCHED_AT_ONCE) await Promise.race([stop, ...open]);
      }
    }
    await Promise.race([stop, Promise.all(open)]);
    await this.#finish();
  }

  #mustFit(layers: LazyLayer[]): void {
    if (this.#held === null) return;
    let bytes = 0;
    for (const { index } of layers)
      for (const piece of index.pieces()) bytes += bytesOf(piece, this.#blockSize);
    if (bytes <= this.#held.limit) return;
    throw new PcowError(
      'PCOW_LIMIT',
      `${this.image.info().path} has ${bytes} bytes in its registry, and a limit of ${this.#held.limit}: it cannot keep all of them`,
      { next: 'pcow prefetch --no-limit removes the limit' },
    );
  }

  /** Nothing is remote any more, and the image is an ordinary one. */
  get complete(): boolean {
    return this.#complete;
  }

  get state(): FetchState {
    let first: Wanted | null = null;
    for (const wanted of this.#all()) {
      if (wanted.since !== null && (first?.since == null || wanted.since < first.since))
        first = wanted;
    }
    return {
      reference: this.source.origin.reference,
      waiting:
        first?.since == null
          ? null
          : {
              since: first.since,
              snapshot: first.layer.snapshot,
              offset: first.piece.number * PIECE,
              problem: first.problem ?? this.#trouble?.error.message ?? null,
            },
      limit: this.#held?.limit ?? null,
      givenBackBytes: this.#held?.givenBack ?? 0,
      requests: this.#requests,
      fetchedBytes: this.#fetchedBytes,
    };
  }

  /** All who wait fail with PCOW_CANCELLED. The image may be closed afterwards. */
  async close(): Promise<void> {
    this.#end.abort();
    for (const wanted of this.#all())
      this.#giveUp(wanted, cancelled('the fetch', this.#end.signal));
    await Promise.allSettled(this.#running);
    await this.#sessions.close();
  }

  *#all(): Generator<Wanted> {
    for (const pieces of this.#wanted.values()) yield* [...pieces.values()];
  }

  #want(layer: LazyLayer, at: number, urgent: boolean): Wanted {
    let pieces = this.#wanted.get(layer);
    if (pieces === undefined) this.#wanted.set(layer, (pieces = new Map<number, Wanted>()));
    let wanted = pieces.get(at);
    const isNew = wanted === undefined;
    wanted ??= new Wanted(layer, at);
    pieces.set(at, wanted);
    if (this.#end.signal.aborted) {
      this.#giveUp(wanted, cancelled('the fetch', this.#end.signal));
    } else if (urgent && wanted.since === null) {
      wanted.since = new Date();
      this.#queue(this.#urgent, wanted);
    } else if (isNew) {
      this.#queue(this.#others, wanted);
    }
    return wanted;
  }

  #queue(queue: Wanted[], wanted: Wanted): void {
    queue.push(wanted);
    if (this.#pumping) return;
    this.#pumping = true;
    // Later in this turn, more neighbours may be wanted.
    queueMicrotask(() => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #pump(): void {
    for (;;) {
      const urgent = this.#running.size < WIDTH ? next(this.#urgent) : null;
      const first = urgent ?? (this.#running.size < WIDTH_AHEAD ? next(this.#others) : null);
      if (first === null || this.#end.signal.aborted) return;
      const group = this.#groupAround(first, urgent !== null);
      for (const wanted of group) wanted.underWay = true;
      const running = this.#run(group).finally(() => {
        this.#running.delete(running);
        this.#pump();
      });
      this.#running.add(running);
    }
  }

  /**
   * Neighbours that are wanted, too. A piece that a reader waits for does not wait for others that
   * no reader needs yet.
   */
  #groupAround(first: Wanted, urgent: boolean): Wanted[] {
    const pieces = this.#wanted.get(first.layer)!;
    const group = [first];
    let length = first.piece.stored;
    const joins = (at: number): Wanted | null => {
      const other = pieces.get(at);
      if (other === undefined || !isFree(other) || group.length === GROUP_PIECES) return null;
      if (urgent && other.since === null) return null;
      length += other.piece.stored;
      return length > GROUP ? null : other;
    };
    for (let at = first.at + 1, it = joins(at); it !== null; it = joins(++at)) group.push(it);
    for (let at = first.at - 1, it = joins(at); it !== null; it = joins(--at)) group.unshift(it);
    return group;
  }

  async #run(group: Wanted[]): Promise<void> {
    const { layer } = group[0]!;
    try {
      const arrived = await this.#fetchGroup(layer, group);
      this.#noteSuccess();
      const sound: Wanted[] = [];
      const contents: Content[] = [];
      for (const [at, content] of arrived.entries()) {
        if (content instanceof Error) {
          if (group[at]!.failures === 0) this.events.onTrouble?.(content);
          this.#failed(group[at]!, content);
        } else {
          sound.push(group[at]!);
          contents.push(content);
        }
      }
      await this.#store(layer, contents).then(
        () => {
          for (const wanted of sound) this.#arrived(wanted);
        },
        (error: unknown) => {
          const isHopeless = !isPcowError(error, 'PCOW_NO_SPACE', 'PCOW_IO');
          if (sound.some(({ failures }) => failures === 0)) this.events.onTrouble?.(error as Error);
          for (const wanted of sound) this.#failed(wanted, error as Error, isHopeless);
        },
      );
    } catch (error) {
      for (const wanted of group) this.#failed(wanted, error as Error);
      if (isPcowError(error) && !this.#end.signal.aborted) this.#noteTrouble(error);
    }
    if (this.#urgent.length + this.#others.length === 0)
      await this.#finish().catch(() => undefined);
  }

  /** For each piece its content, or what is wrong with it. */
  async #fetchGroup(layer: LazyLayer, group: Wanted[]): Promise<(Content | Error)[]> {
    const pieces = group.map(({ piece }) => piece);
    this.#requests++;
    return this.#sessions.reading(layer.data, async (reader, name) => {
      const framed = await framesOf(reader, pieces);
      this.#fetchedBytes += framed.reduce((sum, { frame }) => sum + frame.length, 0);
      return Promise.all(
        framed.map((it) =>
          contentOf(name, layer.data, it).catch((error: unknown) => error as Error),
        ),
      );
    });
  }

  async #store(layer: LazyLayer, contents: Content[]): Promise<void> {
    const held = this.#held;
    const bytes = contents.reduce((sum, it) => sum + bytesOf(it.piece, this.#blockSize), 0);
    await held?.makeRoom(bytes);
    try {
      await this.#fill(layer, contents);
    } catch (error) {
      held?.notStored(bytes);
      throw error;
    }
  }

  /** One call for pieces that are neighbours in the image: it costs one sync. */
  async #fill(layer: LazyLayer, contents: Content[]): Promise<void> {
    for (let from = 0; from < contents.length;) {
      let end = from + 1;
      while (contents[end]?.piece.number === contents[end - 1]!.piece.number + 1) end++;
      const first = contents[from]!.piece.number * PIECE;
      const wholeBlocks = Math.ceil(layer.size / this.#blockSize) * this.#blockSize;
      const bytes = Buffer.alloc(Math.min((end - from) * PIECE, wholeBlocks - first));
      for (const { piece, bytes: data } of contents.slice(from, end)) {
        let at = 0;
        for (const { kind, offset, length } of runsOf(piece)) {
          if (kind === 'data') at += data.copy(bytes, offset - first, at, at + length);
        }
      }
      await this.image.fill(layer.id, first / this.#blockSize, bytes);
      from = end;
    }
  }

  #arrived(wanted: Wanted): void {
    wanted.layer.setRemote(wanted.at, false);
    this.#held?.add(wanted.layer, wanted.at);
    this.#forget(wanted);
    wanted.resolve();
  }

  #failed(wanted: Wanted, error: Error, isHopeless = false): void {
    if (wanted.since === null || isHopeless || this.#end.signal.aborted) {
      this.#giveUp(wanted, error);
      return;
    }
    wanted.problem = error.message;
    wanted.underWay = false;
    const pause = Math.min(LONGEST_PAUSE, PAUSE * 2 ** wanted.failures++) * (0.5 + Math.random());
    wanted.pause = setTimeout(() => {
      this.#goOn(wanted);
    }, pause);
  }

  #goOn(wanted: Wanted): void {
    if (wanted.pause === null) return;
    clearTimeout(wanted.pause);
    wanted.pause = null;
    this.#queue(this.#urgent, wanted);
  }

  #giveUp(wanted: Wanted, error: unknown): void {
    if (wanted.pause !== null) clearTimeout(wanted.pause);
    this.#forget(wanted);
    wanted.reject(error);
  }

  #forget(wanted: Wanted): void {
    wanted.underWay = true;
    this.#wanted.get(wanted.layer)?.delete(wanted.at);
  }

  #noteTrouble(error: Error): void {
    if (this.#trouble === null) this.events.onTrouble?.(error);
    this.#trouble = { since: this.#trouble?.since ?? Date.now(), error };
  }

  /** What waits because the registry could not be reached need not wait longer. */
  #noteSuccess(): void {
    if (this.#trouble === null) return;
    this.events.onRecovery?.(Date.now() - this.#trouble.since);
    this.#trouble = null;
    for (const wanted of this.#all()) this.#goOn(wanted);
  }

  /** When nothing is remote any more, the image becomes an ordinary one. */
  async #finish(): Promise<void> {
    if (this.#complete || this.#end.signal.aborted) return;
    for (const layer of this.#layers.values()) if (!layer.remote().next().done) return;
    if (this.image.info().lazy) {
      if ((await this.image.remoteBytes()) > 0) return;
      await this.image.setSource(null);
    }
    this.#complete = true;
  }
}

/** For Fetcher.prefetch(). */
export interface Prefetching {
  signal?: AbortSignal | undefined;
  /** Bytes of data. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

function next(queue: Wanted[]): Wanted | null {
  for (let wanted = queue.shift(); wanted !== undefined; wanted = queue.shift())
    if (isFree(wanted)) return wanted;
  return null;
}

function isFree({ underWay, pause }: Wanted): boolean {
  return !underWay && pause === null;
}
