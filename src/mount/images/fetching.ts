/**
 * Fetches what a lazy image lacks: for readers that wait, and for the command `prefetch`. The image
 * is open for writing meanwhile. Code that closes the image, or hands it to a monitor, stops this
 * first: then readers ask again, and the image is opened again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Image, isPcowError, PcowError } from '../../engine/index.js';
import type { Fetcher, FetchState } from '../../registry/fetcher.js';
import type { Touch } from '../../registry/trace.js';
import { WITHOUT_LIMIT } from '../../images/control-names.js';
import { sentenceOf } from '../failure.js';
import { log } from '../log.js';
import { Work } from './work.js';

/** Milliseconds before a reader asks again, if another process has the image. */
const RETRY = 1000;

/** An image that stays open for writing until `release` is called. */
export interface Pinned {
  image: Image;
  release: () => void | Promise<void>;
}

interface Active {
  fetcher: Fetcher;
  pinned: Pinned;
}

export class Fetching {
  #active: Promise<Active> | null = null;
  #present: Active | null = null;
  /** Why the image cannot be opened for writing now. */
  #locked: { since: Date; error: PcowError } | null = null;
  #work: Work | null = null;

  constructor(
    private readonly image: { readonly name: string },
    private readonly open: () => Promise<Pinned>,
  ) {}

  /** The command `prefetch`, while it runs. */
  get work(): Work | null {
    return this.#work;
  }

  /** null: nothing has been fetched yet, or the image is complete. */
  get state(): FetchState | null {
    return this.#present?.fetcher.state ?? null;
  }

  get trace(): Touch[] {
    return this.#present?.fetcher.trace ?? [];
  }

  /** Another process has the image, and a reader waits for bytes that it lacks. */
  get locked(): { since: Date; problem: string } | null {
    return this.#locked && { since: this.#locked.since, problem: this.#locked.error.message };
  }

  /**
   * Returns when the reader should try again: the block has been filled, or something else has
   * changed. Fails if the block cannot be filled, whatever happens.
   */
  async fetch(layer: number, block: number): Promise<void> {
    try {
      const { fetcher } = await this.#opened();
      this.#locked = null;
      await fetcher.fetch(layer, block);
      await this.#endIfComplete();
    } catch (error) {
      if (isPcowError(error, 'PCOW_LOCKED', 'PCOW_BUSY', 'PCOW_NO_SPACE')) {
        if (this.#locked === null) log(`${this.image.name}: readers wait: ${error.message}`);
        this.#locked = { since: this.#locked?.since ?? new Date(), error };
        await sleep(RETRY);
      } else if (!isPcowError(error, 'PCOW_CANCELLED')) {
        throw error;
      }
    }
  }

  /** Fetches everything. `text`: "now"; or "without limit", if the image may have one. */
  async prefetch(text: string): Promise<void> {
    if (this.#work !== null)
      throw new PcowError('PCOW_BUSY', `a prefetch of ${this.image.name} is in progress already`);
    const work = new Work('prefetch', text);
    this.#work = work;
    try {
      const active = await this.#openedIfLazy();
      if (text === WITHOUT_LIMIT) await active?.fetcher.removeLimit();
      await active?.fetcher.prefetch(work.options);
      await this.#endIfComplete();
    } finally {
      this.#work = null;
    }
  }

  /** Returns when nothing uses the image any more. */
  async stop(): Promise<void> {
    this.#work?.stop();
    const active = this.#active;
    this.#active = this.#present = null;
    const it = await active?.catch(() => null);
    if (it == null) return;
    await it.fetcher.close();
    await it.pinned.release();
  }

  async #endIfComplete(): Promise<void> {
    if (this.#present?.fetcher.complete !== true) return;
    log(`${this.image.name} is complete: it needs no registry any more`);
    await this.stop();
  }

  async #opened(): Promise<Active> {
    const active = await this.#openedIfLazy();
    if (active !== null) return active;
    // Another process has completed it; the reader will see that.
    throw new PcowError('PCOW_CANCELLED', `${this.image.name} is complete`);
  }

  async #openedIfLazy(): Promise<Active | null> {
    try {
      return await (this.#active ??= this.#open());
    } catch (error) {
      this.#active = null;
      if (error === COMPLETE) return null;
      throw error;
    }
  }

  async #open(): Promise<Active> {
    const pinned = await this.open();
    try {
      // Only a mount with a lazy image needs it.
      const { Fetcher } = await import('../../registry/fetcher.js');
      const { name } = this.image;
      const fetcher = await Fetcher.open(pinned.image, {
        onTrouble: (error) => {
          log(`${name}: readers wait for bytes that can't be fetched: ${sentenceOf(error)}`);
        },
        onRecovery: (milliseconds) => {
          log(`${name}: fetching goes on after ${Math.ceil(milliseconds / 1000)} s`);
        },
      });
      if (fetcher === null) throw COMPLETE;
      this.#present = { fetcher, pinned };
      return this.#present;
    } catch (error) {
      await pinned.release();
      throw error;
    }
  }
}

const COMPLETE = new PcowError('PCOW_CANCELLED', 'the image is not lazy any more');
