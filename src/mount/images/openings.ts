/**
 * The openings of one image file. The first read opens it for reading. The first command, or the
 * first open for writing, replaces that opening by one for writing, which takes the image's lock.
 * Unused openings may be closed to make room for others (open-images.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { Image, isPcowError, PcowError } from '../../engine/index.js';
import { sentenceOf } from '../failure.js';
import { type LastError, lastErrorOf } from '../control/last-error.js';
import { debugLog, log } from '../log.js';
import { isOutOfDescriptors } from './open-images.js';
import { Opening, type OpeningOwner } from './opening.js';
import type { Place } from '../place.js';
import { noTraffic, sumOfTraffic, type Traffic } from './traffic.js';

const debug = debugLog('image');

/** Milliseconds for which a failed open is not tried again. */
const RETRY_AFTER = 1000;

/**
 * Milliseconds: the lock of a process that ended is released a moment after its connection ends;
 * and a monitor whose mount has died connects to the next one within a fifth of a second.
 */
const LOCK_GRACE = 3000;

export class Openings implements OpeningOwner {
  /** `mv` changes these. */
  readonly #image: { readonly name: string; readonly file: string };
  readonly #place: Place;
  readonly #refused: PcowError | null;
  readonly #closeIdleWriter: () => Promise<void> | null;
  /** The openings that are not closed. */
  readonly #all = new Set<Opening>();
  /** Traffic of closed openings, and the last error of those that were closed to make room. */
  #past = noTraffic();
  #pastError: LastError | null = null;
  #reader: Promise<Opening> | null = null;
  /** The same, once it is open. */
  #presentReader: Opening | null = null;
  #writer: Opening | null = null;
  #becomingWriter: Promise<Opening> | null = null;
  #failure: { error: unknown; at: number } | null = null;
  /** Until when to wait for a lock that another process holds, in milliseconds. */
  #lockGrace = Date.now() + LOCK_GRACE;

  /**
   * `refused`: why the file must not be opened at all. `closeIdleWriter` calls closeWriter() if the
   * writer is unused, and returns null otherwise.
   */
  constructor(
    image: { readonly name: string; readonly file: string },
    place: Place,
    refused: PcowError | null,
    closeIdleWriter: () => Promise<void> | null,
  ) {
    this.#image = image;
    this.#place = place;
    this.#refused = refused;
    this.#closeIdleWriter = closeIdleWriter;
  }

  /** Why this mount cannot change the image, whichever process has its lock. */
  get refusal(): PcowError | null {
    const { name } = this.#image;
    return this.#place.settings.readOnly
      ? new PcowError(
          'PCOW_READ_ONLY',
          `${name} is mounted read-only: mount its directory for writing`,
        )
      : this.#refused;
  }

  /** The image for reading: the writer's opening if there is one. */
  async view(): Promise<Opening> {
    const present = this.#writer ?? this.#presentReader;
    if (present) {
      this.#place.openImages.touch(present);
      return present;
    }
    if (this.#refused) {
      throw this.#refused;
    }
    if (this.#failure && Date.now() - this.#failure.at < RETRY_AFTER) {
      throw this.#failure.error;
    }
    if (!this.#reader) {
      const opening = this.#open(false);
      this.#reader = opening;
      opening.then(
        (it) => {
          this.#failure = null;
          if (this.#reader === opening) this.#presentReader = it;
        },
        (error: unknown) => {
          debug('%s: %s', this.#image.name, sentenceOf(error));
          // A descriptor may become free at any moment.
          if (!isOutOfDescriptors(error)) this.#failure = { error, at: Date.now() };
          this.#reader = null;
        },
      );
    }
    return this.#reader;
  }

  closeIfIdle(opening: Opening): Promise<void> | null {
    if (opening === this.#writer) return this.#closeIdleWriter();
    if (opening !== this.#presentReader) return null; // it is just replacing another one
    this.#reader = this.#presentReader = null;
    return this.#closeForRoom(opening).catch((error: unknown) => {
      log(`${this.#image.name}: closing it failed: ${sentenceOf(error)}`);
    });
  }

  /**
   * Closes the writer, if there is one. A later write opens another. The writer must be unused, and
   * stay so during the call.
   */
  async closeWriter(): Promise<void> {
    const writer = this.#writer;
    if (writer?.idle !== true) return;
    this.#writer = this.#becomingWriter = null;
    this.expectLock();
    await this.#closeForRoom(writer);
  }

  #closeForRoom(opening: Opening): Promise<void> {
    this.#pastError = this.lastError();
    return opening.close();
  }

  closed(opening: Opening): void {
    if (!this.#all.delete(opening)) return;
    this.#past = sumOfTraffic([this.#past, opening.traffic()]);
    this.#place.openImages.remove(opening);
  }

  /**
   * The image for changing it. Takes its lock, or fails with PCOW_LOCKED. `giveUp` is called before
   * each retry, and throws if a retry is useless.
   */
  writer(giveUp: () => void): Promise<Opening> {
    this.#becomingWriter ??= this.#becomeWriter(giveUp);
    return this.#becomingWriter;
  }

  /** This mount's opening for writing, if it has one. */
  get present(): Opening | null {
    return this.#writer;
  }

  async #becomeWriter(giveUp: () => void): Promise<Opening> {
    try {
      const opening = await this.#openToWrite(giveUp);
      this.#writer = opening;
      this.#failure = null;
      const reader = this.#reader;
      this.#reader = this.#presentReader = null;
      reader?.then(
        (it) => {
          it.retire();
        },
        () => undefined, // view() has handled it
      );
      debug('%s: open for writing', this.#image.name);
      return opening;
    } catch (error) {
      this.#becomingWriter = null;
      throw error;
    }
  }

  async #openToWrite(giveUp: () => void): Promise<Opening> {
    for (;;) {
      try {
        return await this.#open(true);
      } catch (error) {
        if (!isPcowError(error, 'PCOW_LOCKED') || Date.now() > this.#lockGrace) {
          throw error;
        }
        await sleep(20);
        giveUp();
      }
    }
  }

  /** A process that had the lock has just ended, or released it. */
  expectLock(): void {
    this.#lockGrace = Date.now() + LOCK_GRACE;
  }

  async #open(write: boolean): Promise<Opening> {
    if (write) {
      await this.#place.watchdog.start().catch((error: unknown) => {
        log(
          `${this.#image.name}: if the mount is killed, no process will sync the image: ${sentenceOf(error)}`,
        );
      });
    }
    const baseRoot = this.#place.settings.allowOutsideBase ? undefined : this.#place.directory;
    const image = await this.#place.openImages.opening(() =>
      Image.open(this.#image.file, { write, ...(baseRoot && { baseRoot }) }),
    );
    const opening = new Opening(image, write, this);
    this.#all.add(opening);
    this.#place.openImages.add(opening);
    return opening;
  }

  /**
   * Replaces the writer by an opening for reading. `move` is called as soon as both are open.
   * Returns the writer, which has `ended`, and which the caller must close; null if there was none.
   */
  async stopWriting(move: (from: Opening, to: Opening) => void): Promise<Opening | null> {
    await this.#becomingWriter?.catch(() => undefined);
    const writer = this.#writer;
    if (!writer) {
      await this.view();
      return null;
    }
    const reader = this.#open(false);
    this.#reader = reader;
    this.#writer = this.#becomingWriter = null;
    writer.ended = true;
    try {
      const opening = await reader;
      move(writer, opening);
      this.#presentReader = opening;
    } catch (error) {
      this.#reader = null;
      this.#writer = writer;
      this.#becomingWriter = Promise.resolve(writer);
      writer.ended = false;
      throw error;
    }
    return writer;
  }

  /** Requests on the flat file since the mount began. */
  traffic(): Traffic {
    return sumOfTraffic([this.#past, ...[...this.#all].map((opening) => opening.traffic())]);
  }

  /** The last request that failed, on an opening that still exists or was closed to make room. */
  lastError(): LastError | null {
    return [...this.#all]
      .filter(({ ended }) => !ended)
      .map(({ image }) => image.info().lastError)
      .filter((last) => last !== null)
      .reduce<LastError | null>(
        (latest, { time, error }) =>
          latest && latest.time >= time ? latest : lastErrorOf(null, error, time),
        this.#pastError,
      );
  }

  /** The image file is gone, or was replaced: new users do not get these openings. */
  retire(): void {
    this.#writer?.retire();
    this.#reader?.then(
      (it) => {
        it.retire();
      },
      () => undefined,
    );
    this.#writer = this.#reader = this.#presentReader = this.#becomingWriter = null;
  }

  /** Syncs and closes all openings, even if they are used. */
  async shutDown(): Promise<void> {
    const openings = [this.#becomingWriter, this.#reader];
    this.#writer = this.#reader = this.#presentReader = this.#becomingWriter = null;
    for (const opening of openings) {
      const it = await opening?.catch(() => null);
      await it?.close();
    }
  }
}
