/**
 * Says which process writes an image: this mount, or the monitor of another process. Each image has
 * one state; docs/monitor.md ("The attachment") says what every call does in each state. Only the
 * transitions in NEXT happen, and only here.
 *
 * Calls wait while a transition is in progress (`passing`). The code that changes the state must
 * not wait for `commands`, because such a call may hold it.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { isGone, type Monitor } from '../../attach/monitor.js';
import { isPcowError, PcowError, recoverImage } from '../../engine/index.js';
import { cachedReads, flatFileChanged, moveHandle } from '../../engine/native-operations.js';
import type { FlatFileUse, ImageEntry } from './image-entry.js';
import { debugLog } from '../log.js';
import type { Opening } from './opening.js';
import type { Openings } from './openings.js';
import { dropCachedPages } from './page-cache.js';

const debug = debugLog('attachment');

/**
 * Milliseconds for which pages that were read through an old descriptor may stay in the kernel's
 * cache while a monitor has the image.
 */
const CACHE_AGE = 200;

/** Milliseconds: the lock of a process that died is released a moment after its connection ends. */
const LOCK_GRACE = 3000;

/**
 * - detached: the mount may write it.
 * - attaching: the mount is handing it over.
 * - attached: the monitor has it.
 * - frozen: the monitor has it, and its memory is frozen for a snapshot.
 * - releasing: the monitor has closed it, and the mount is taking it back.
 * - lost: the connection ended without a release, because the process has died or the mount has
 *   closed the connection. The mount takes the image back if it can.
 */
export type AttachmentState =
  'detached' | 'attaching' | 'attached' | 'frozen' | 'releasing' | 'lost';

const NEXT: Record<AttachmentState, readonly AttachmentState[]> = {
  detached: ['attaching'],
  attaching: ['attached', 'releasing', 'lost'],
  attached: ['frozen', 'releasing', 'lost'],
  frozen: ['attached', 'releasing', 'lost'],
  releasing: ['detached'],
  // A monitor whose connection was closed, but which lives, has kept the lock, and returns with it.
  lost: ['detached', 'attaching'],
};

/** States that end by themselves. */
const PASSING: readonly AttachmentState[] = ['attaching', 'releasing', 'lost'];

export class Attachment {
  readonly #entry: ImageEntry;
  readonly #openings: Openings;
  #state: AttachmentState = 'detached';
  #monitor: Monitor | null = null;
  /**
   * Calls that wait for the next transition, or for the moment when open files can be written
   * again.
   */
  #waiting: (() => void)[] = [];
  #lending: Promise<void> = Promise.resolve();

  constructor(entry: ImageEntry, openings: Openings) {
    this.#entry = entry;
    this.#openings = openings;
  }

  get state(): AttachmentState {
    return this.#state;
  }

  /**
   * The monitor of the process that has the image, or is about to have it. null: the mount has the
   * image, or is taking it back.
   */
  get monitor(): Monitor | null {
    return this.#state === 'releasing' || this.#state === 'lost' ? null : this.#monitor;
  }

  get passing(): boolean {
    return PASSING.includes(this.#state);
  }

  /**
   * Waits until the state is detached, attached or frozen. Other states depend on this mount's own
   * work, each part of which has a time limit.
   */
  async settled(): Promise<void> {
    while (this.passing) {
      await this.#change();
    }
  }

  /** The error for a caller that wants to change the image. */
  attachedTo(monitor: Monitor): PcowError {
    return new PcowError(
      'PCOW_LOCKED',
      `${monitor.process} uses ${this.#entry.name} and alone can change it: shut it down first`,
    );
  }

  #move(to: AttachmentState, monitor: Monitor | null): void {
    if (!NEXT[this.#state].includes(to)) {
      throw new Error(
        `the attachment of ${this.#entry.name} can't go from ${this.#state} to ${to}`,
      );
    }
    debug('%s: %s to %s (%s)', this.#entry.name, this.#state, to, monitor?.process ?? '');
    this.#state = to;
    this.#monitor = to === 'detached' ? null : monitor;
    flatFileChanged(this.#entry.name);
    this.#entry.grant?.takeBack();
    this.#wake();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) {
      resolve();
    }
  }

  /**
   * Prepares the image for a monitor: open files remain readable, and writing to them fails with
   * EBUSY from here on. Afterwards everything written is in the image, and its lock is free.
   * `commands` must be held, except for a monitor that has the lock already.
   */
  async lend(monitor: Monitor): Promise<void> {
    if (this.#monitor && this.#state !== 'lost') {
      throw this.attachedTo(this.#monitor);
    }
    this.#move('attaching', monitor);
    this.#lending = this.#lend();
    await this.#lending;
    await this.#dropCache();
    debug('%s: lent to %s', this.#entry.name, monitor.process);
  }

  async #lend(): Promise<void> {
    const writer = await this.#openings.stopWriting((from, to) => {
      for (const use of this.#entry.uses) {
        if (use.opening === from) {
          moveUse(use, to, { lent: true });
        }
      }
    });
    await this.#entry.checksums.stop();
    await this.#entry.fetching.stop();
    await writer?.close();
  }

  /**
   * After lend(): the monitor has the image. Does nothing if the monitor has ended in the meantime.
   */
  handedOver(monitor: Monitor): void {
    if (this.#monitor === monitor && this.#state === 'attaching') {
      this.#move('attached', monitor);
      void this.#keepFresh(monitor);
    }
  }

  /**
   * The guest's memory is frozen (true), or continues (false). Does nothing if the monitor has
   * ended in the meantime.
   */
  freeze(monitor: Monitor, still: boolean): void {
    if (this.#monitor === monitor && this.#state === (still ? 'attached' : 'frozen')) {
      this.#move(still ? 'frozen' : 'attached', monitor);
    }
  }

  /**
   * The monitor has closed the image ('releasing'), or its connection has ended ('lost'), also
   * after lend() failed.
   *
   * Order: open files become writable as soon as the image is open, because a waiting write(2)
   * keeps pages locked that the kernel must drop. The kernel's write-back is refused until it has
   * dropped everything: those pages are older than the image.
   */
  async takeBack(monitor: Monitor, how: 'releasing' | 'lost'): Promise<void> {
    if (this.#monitor !== monitor || this.#state === 'releasing' || this.#state === 'lost') {
      return;
    }
    this.#move(how, monitor);
    this.#openings.expectLock();
    const isOurs = () => this.#monitor === monitor && this.#state === how;
    try {
      await this.#lending.catch(() => undefined);
      const moved = await this.#writeAgain();
      if (isOurs()) {
        await this.#dropCache();
      }
      for (const use of moved) {
        if (this.#entry.uses.has(use) && use.opening.writable) {
          moveUse(use, use.opening);
        }
      }
      await this.#recover(isOurs);
    } finally {
      // Another monitor may have attached, or this one again.
      if (isOurs()) {
        this.#move('detached', null);
        this.#entry.makeChecksums();
        debug('%s: taken back from %s', this.#entry.name, monitor.process);
      }
    }
  }

  /**
   * Makes durable what a killed process has written, before any other process can have the image.
   */
  async #recover(goOn: () => boolean): Promise<void> {
    const { present, refusal } = this.#openings;
    if (refusal) {
      return;
    }
    const deadline = Date.now() + LOCK_GRACE;
    try {
      if (present) {
        await present.image.sync();
        return;
      }
      while (
        goOn() &&
        (await recoverImage(this.#entry.file)) === 'in use' &&
        Date.now() < deadline
      ) {
        await sleep(20);
      }
    } catch (error) {
      // The next user of the image gets the error, too.
      this.#entry.failed('recover', error);
    }
  }

  /** Gives open files their writer back. Returns those files. */
  async #writeAgain(): Promise<FlatFileUse[]> {
    const waiting = () =>
      [...this.#entry.uses].filter(
        (use) => use.writable && use.snapshot === null && !use.opening.writable,
      );
    if (waiting().length === 0) {
      return [];
    }
    const opening = await this.writer();
    const moved = waiting();
    for (const use of moved) {
      moveUse(use, opening, { refusesCached: true });
    }
    this.#wake();
    return moved;
  }

  /** Also while the image is being taken back. */
  async writer(): Promise<Opening> {
    return this.#openings.writer(() => {
      // The process that holds the lock may have returned with it.
      if (this.monitor) {
        throw this.attachedTo(this.monitor);
      }
    });
  }

  async #dropCache(): Promise<void> {
    if (
      [...this.#entry.uses].some(({ snapshot, handle }) => snapshot === null && handle !== null)
    ) {
      await dropCachedPages(this.#entry.flatFile);
    }
  }

  /**
   * Reads through descriptors that were open before the attachment put pages into the kernel's
   * cache. Drops them regularly, so that they do not become stale.
   */
  async #keepFresh(monitor: Monitor): Promise<void> {
    let seen: number | null = null;
    for (;;) {
      await sleep(CACHE_AGE, undefined, { ref: false });
      if (this.monitor !== monitor) {
        return;
      }
      const reader = await this.#openings.view().catch(() => null);
      const reads = reader === null ? 0 : cachedReads(reader.image);
      if (seen !== reads && reads > 0) {
        await this.#dropCache();
      }
      seen = reads;
    }
  }

  /**
   * Whether a process may have the flat file open while a monitor has the image. For writing, only
   * the attached process may, because its stores go to its memory. Others read without the kernel's
   * cache. `thread`: any thread of the process.
   */
  async mayOpen(use: FlatFileUse, thread: number): Promise<'yes' | 'past the page cache'> {
    for (;;) {
      const { monitor } = this;
      if (monitor === null || monitor.hasThread(thread)) {
        return 'yes';
      }
      if (!use.writable) {
        return 'past the page cache';
      }
      await monitor.look();
      if (this.monitor === monitor) {
        throw this.attachedTo(monitor);
      }
      await this.settled();
    }
  }

  /**
   * If the image is being given back, waits until a flat file that is open for writing can be
   * written again. Fails with PCOW_LOCKED if a process has the image.
   */
  async regain(use: FlatFileUse): Promise<void> {
    while (!use.opening.writable) {
      const { monitor } = this;
      if (monitor) {
        // First receive what the monitor has sent, which may be that it has released the image or
        // ended.
        await monitor.look();
        if (this.monitor === monitor) {
          throw this.attachedTo(monitor);
        }
      } else if (this.#state === 'detached') {
        const opening = await this.writer();
        if (!use.opening.writable && !opening.ended) {
          moveUse(use, opening);
        }
      } else {
        await this.#change();
      }
    }
  }

  /**
   * An fsync of the flat file by any process: afterwards everything written is durable, whichever
   * process wrote it.
   */
  async sync(): Promise<void> {
    await this.settled();
    // A monitor is asked between commands, and not between the steps of a snapshot while a guest is
    // frozen. Without a monitor this does not wait for `commands`, because a command may need this
    // fsync to get pages written back.
    await (this.monitor ? this.#entry.commands.run(() => this.syncNow()) : this.syncNow());
  }

  /** The same, for a caller that holds `commands`. */
  async syncNow(): Promise<void> {
    for (;;) {
      await this.settled();
      const { monitor } = this;
      try {
        await (monitor ? monitor.request('sync', { undo: [] }) : this.#syncOwn());
        return;
      } catch (error) {
        // The image has changed hands in the meantime: ask the present writer.
        const closed =
          monitor === null && isPcowError(error, 'PCOW_CLOSED') && this.#openings.present !== null;
        if (!isGone(error) && !closed && this.monitor === monitor) {
          throw error;
        }
      }
    }
  }

  /** What a dead process has written is in the image, but perhaps not on the disk yet. */
  async #syncOwn(): Promise<void> {
    const { present, refusal } = this.#openings;
    if (!present && (refusal || (await this.#openings.view()).image.info().clean)) {
      return;
    }
    try {
      const opening = present ?? (await this.writer());
      await opening.image.sync();
      opening.served.syncs += 1;
    } catch (error) {
      // What another process is writing now is for that process to sync.
      if (present || !isPcowError(error, 'PCOW_LOCKED')) {
        throw error;
      }
    }
  }
}

/** Moves an open file to another opening of its image. */
function moveUse(
  use: FlatFileUse,
  opening: Opening,
  how: { lent?: true; refusesCached?: true } = {},
): void {
  const { handle, snapshot, writable } = use;
  if (handle !== null) {
    moveHandle(handle, opening.image, { writable, ...(snapshot !== null && { snapshot }), ...how });
  }
  opening.use();
  use.opening.release();
  use.opening = opening;
}
