/**
 * How many image files a mount has open. An image is opened when somebody looks at it, and stays open so that the next look is quick; before
 * there are too many, those that nobody uses are closed, the one that was looked at longest ago first.
 */
import { readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { setImmediate as nextTurn } from 'node:timers/promises';

import { isPcowError, PcowError } from '../../engine/index.js';
import { debugLog } from '../log.js';

const debug = debugLog('image');

/** Of the descriptors that the mount may have, this part is for image files that nobody uses. */
const SHARE = 0.5;

/** Descriptors that are not for image files: the mount's own, and those of what it asks the system. */
const OWN = 40;

/** However many it may have: an open image has its tables mapped, too. */
const MOST = 4096;

/** However few: one that is looked at stands on others. */
const FEWEST = 16;

function tooManyUsed(files: number): PcowError {
  return new PcowError(
    'PCOW_LIMIT',
    `${files} image files are in use, and this mount may have no more descriptors: ` +
      'raise its limit (ulimit -Hn, LimitNOFILE= of its unit), and mount anew',
    { errno: constants.errno.EMFILE },
  );
}

/** So many are opened at a time: what is opened has to be counted, and looked at, before it is idle. */
const AT_ONCE = 8;

/** An image file that is open, and those that it stands on. */
export interface Closable {
  /** How many files that are. */
  readonly files: number;
  /** Closes it if nobody uses it: a promise of the end of that. null: it is used. That is decided in the turn of the call. */
  closeIfIdle(): Promise<void> | null;
}

/** Whether this process, or the machine, has no descriptor left. */
export function isOutOfDescriptors(error: unknown): boolean {
  return isPcowError(error) && (error.errno === constants.errno.EMFILE || error.errno === constants.errno.ENFILE);
}

export class OpenImages {
  readonly #limit: number;
  readonly #most: number;
  /** Looked at longest ago first. */
  readonly #open = new Set<Closable>();
  #files = 0;
  /** Openings that are under way: one file each, until it is known how many they are. */
  #coming = 0;
  readonly #waiting: (() => void)[] = [];
  readonly #closing = new Set<Promise<void>>();

  /** So many files are open before idle ones are closed, and so many if all are used. */
  constructor(limit: number, most: number) {
    this.#limit = limit;
    this.#most = most;
  }

  /** For as many descriptors as this process may have. Node has raised the soft limit to the hard one as it started. */
  static async ofThisProcess(): Promise<OpenImages> {
    const limits = await readFile('/proc/self/limits', 'utf8').catch(() => '');
    const most = Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? 1024);
    const limit = Math.min(MOST, Math.max(FEWEST, Math.floor(most * SHARE)));
    return new OpenImages(limit, Math.max(limit, most - OWN));
  }

  /**
   * Opens something once there is room for it. Where there is no descriptor all the same, whatever is idle is closed, and it is tried once
   * more.
   */
  async opening<T>(open: () => Promise<T>): Promise<T> {
    // Each that waits here gets the place of one that has ended, which therefore stays counted.
    if (this.#coming < AT_ONCE) this.#coming += 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      // Others are opening theirs meanwhile.
      while (this.#files + this.#coming > this.#limit) {
        if (await this.#makeRoom((freed) => this.#files - freed + this.#coming <= this.#limit)) continue;
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

  /** It is closed. */
  remove(what: Closable): void {
    if (this.#open.delete(what)) this.#files -= what.files;
  }

  /** Somebody looks at it. */
  touch(what: Closable): void {
    if (this.#open.delete(what)) this.#open.add(what);
  }

  /** Closes what is idle until that is `enough`, and waits for the end of it. false: there was nothing to close, and nothing was closing. */
  async #makeRoom(enough: (freed: number) => boolean): Promise<boolean> {
    // Who was given an opening in this turn has had no chance yet to say that it is used.
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
    if (freed > 0) debug('%d image files closed that nobody used', freed);
    await Promise.all(all);
    return all.length > 0;
  }
}
