/**
 * Limits how many image files a mount has open. An image is opened when it is first read, and stays
 * open so that the next read is quick. Before there are too many, unused ones are closed, the least
 * recently used one first.
 */
import { readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';

import { isPcowError, PcowError } from '../../engine/index.js';
import { debugLog } from '../log.js';

const debug = debugLog('image');

/** This part of the mount's descriptors is for unused image files. */
const SHARE = 0.5;

/**
 * Descriptors that are not for image files: the mount's own, and those for reading from the system
 * (/proc).
 */
const OWN = 40;

/**
 * The maximum, however many descriptors the mount may have: the tables of an open image are also
 * mapped.
 */
const MOST = 4096;

/** The minimum, however few descriptors there are: an image stands on others. */
const FEWEST = 16;

function tooManyUsed(files: number): PcowError {
  return new PcowError(
    'PCOW_LIMIT',
    `${files} image files are in use, and this mount may not open more: ` +
      'raise its limit of descriptors (ulimit -Hn, LimitNOFILE= of its unit), and mount again',
    { errno: constants.errno.EMFILE },
  );
}

/** How many are opened at the same time: each must be opened and used before it counts as idle. */
const AT_ONCE = 8;

/** An image file that is open, with the files that it stands on. */
export interface Closable {
  /** The number of these files. */
  readonly files: number;
  /**
   * Closes it if it is unused: returns a promise of its end. Returns null if it is used. This is
   * decided synchronously.
   */
  closeIfIdle(): Promise<void> | null;
}

/** Whether this process, or the machine, has no descriptors left. */
export function isOutOfDescriptors(error: unknown): boolean {
  return (
    isPcowError(error) &&
    (error.errno === constants.errno.EMFILE || error.errno === constants.errno.ENFILE)
  );
}

export class OpenImages {
  readonly #limit: number;
  readonly #most: number;
  /** Least recently used first. */
  readonly #open = new Set<Closable>();
  #files = 0;
  /** Opens in progress. Each counts as one file until the number of its files is known. */
  #coming = 0;
  readonly #waiting: (() => void)[] = [];
  readonly #closing = new Set<Promise<void>>();

  /**
   * `limit`: idle images are closed above this number of files. `most`: the maximum if all are
   * used.
   */
  constructor(limit: number, most: number) {
    this.#limit = limit;
    this.#most = most;
  }

  /**
   * For as many descriptors as this process may have. Node raised the soft limit to the hard limit
   * when it started.
   */
  static async ofThisProcess(): Promise<OpenImages> {
    const limits = await readFile('/proc/self/limits', 'utf8').catch(() => '');
    const most = Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? 1024);
    const limit = Math.min(MOST, Math.max(FEWEST, Math.floor(most * SHARE)));
    return new OpenImages(limit, Math.max(limit, most - OWN));
  }

  /**
   * Runs `open` when there is room for it. If it finds no descriptor nevertheless, all idle images
   * are closed, and it is tried once more.
   */
  async opening<T>(open: () => Promise<T>): Promise<T> {
    // A call that waits here takes over the slot of one that has ended, so #coming is not changed.
    if (this.#coming < AT_ONCE) this.#coming += 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      // Other calls open theirs meanwhile, so check again.
      while (this.#files + this.#coming > this.#limit) {
        if (await this.#makeRoom((freed) => this.#files - freed + this.#coming <= this.#limit))
          continue;
        if (this.#files + this.#coming > this.#most) throw tooManyUsed(this.#files);
        break;
      }
      try {
        return await open();
      } catch (error) {
        if (!isOutOfDescriptors(error)) throw error;
        await this.#makeRoom(() => false);
        return await open();
      }
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#coming -= 1;
    }
  }

  add(what: Closable): void {
    this.#open.add(what);
    this.#files += what.files;
  }

  /** It has been closed. */
  remove(what: Closable): void {
    if (this.#open.delete(what)) this.#files -= what.files;
  }

  /** It has been used. */
  touch(what: Closable): void {
    if (this.#open.delete(what)) this.#open.add(what);
  }

  /**
   * Closes idle images until that is `enough`, and waits for their end. Returns false if there was
   * nothing to close, and nothing was closing.
   */
  async #makeRoom(enough: (freed: number) => boolean): Promise<boolean> {
    // Wait one turn: a caller that got an opening in this turn has not been able to mark it as used
    // yet.
    await nextTurn();
    let freed = 0;
    for (const what of [...this.#open]) {
      if (enough(freed)) break;
      const closed = what.closeIfIdle();
      if (closed === null) continue;
      freed += what.files;
      const closing = closed.finally(() => this.#closing.delete(closing));
      this.#closing.add(closing);
    }
    const all = [...this.#closing];
    if (freed > 0) debug('%d unused image files closed', freed);
    await Promise.all(all);
    return all.length > 0;
  }
}
