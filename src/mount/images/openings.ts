/**
 * The openings of one image file: one to look at it, from the first look on; in its place one to write it, which takes the image's
 * lock, from the first command or the first open for writing on. What nobody uses may be closed to make room for others (open-images.ts).
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

/** Milliseconds for which a failed opening is not tried again. */
const RETRY_AFTER = 1000;

/**
 * Milliseconds: the lock of a process that ended is released a moment after its connection; and a monitor whose mount has died comes to
 * the next one within a fifth of a second.
 */
const LOCK_GRACE = 3000;

export class Openings implements OpeningOwner {
  /** Its names change by `mv`. */
  readonly #image: { readonly name: string; readonly file: string };
  readonly #place: Place;
  readonly #refused: PcowError | null;
  readonly #closeIdleWriter: () => Promise<void> | null;
  /** Those that are not closed. */
  readonly #all = new Set<Opening>();
  /** What those have served that are closed, and the last error of those that were closed to make room. */
  #past = noTraffic();
  #pastError: LastError | null = null;
  #reader: Promise<Opening> | null = null;
  /** The same, where it is there. */
  #presentReader: Opening | null = null;
  #writer: Opening | null = null;
  #becomingWriter: Promise<Opening> | null = null;
  #failure: { error: unknown; at: number } | null = null;
  /** Until when a lock that somebody holds is waited for, in milliseconds. */
  #lockGrace = Date.now() + LOCK_GRACE;

  /**
   * `refused`: why the file must not even be opened. `closeIdleWriter` has closeWriter() called where nobody needs the writer, and returns
   * null where somebody does.
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

  /** Why the image can't be changed by this mount, whoever has its lock. */
  get refusal(): PcowError | null {
    const { name } = this.#image;
    return this.#place.settings.readOnly
      ? new PcowError('PCOW_READ_ONLY', `${name} is mounted read-only: mount its directory for writing`)
      : this.#refused;
  }

  /** The image for looking at: the writer's opening where there is one. */
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
          // There may be a descriptor at any moment.
          if (!isOutOfDescriptors(error)) this.#failure = { error, at: Date.now() };
          this.#reader = null;
        },
      );
    }
    return this.#reader;
  }

  closeIfIdle(opening: Opening): Promise<void> | null {
    if (opening === this.#writer) return this.#closeIdleWriter();
    if (opening !== this.#presentReader) return null; // it is just taking another one's place
    this.#reader = this.#presentReader = null;
    return this.#closeForRoom(opening).catch((error: unknown) => {
      log(`${this.#image.name}: closing it failed: ${sentenceOf(error)}`);
    });
  }

  /** The writer, where there is one, is closed; whoever wants to write opens another. Nobody may be using it, or begin to. */
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
   * The image for changing it. Takes its lock, or fails with PCOW_LOCKED; `giveUp` is asked before that is tried again, and throws where
   * it is no use.
   */
  writer(giveUp: () => void): Promise<Opening> {
    this.#becomingWriter ??= this.#becomeWriter(giveUp);
    return this.#becomingWriter;
  }

  /** This mount's opening for writing, where it has one. */
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
        () => undefined, // view() has seen it
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

  /** A process that had the lock has just ended, or let it go. */
  expectLock(): void {
    this.#lockGrace = Date.now() + LOCK_GRACE;
  }

  async #open(write: boolean): Promise<Opening> {
    if (write) {
      await this.#place.watchdog.start().catch((error: unknown) => {
        log(`${this.#image.name}: nobody will sync it should the mount be killed: ${sentenceOf(error)}`);
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
   * Goes on with an opening to look at. The writer's, where there was one, is `ended`, and the caller's to close after `move`, which is
   * called as soon as both are there.
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

  /** Of the last request that failed on an opening that is still there, or was closed to make room. */
  lastError(): LastError | null {
    return [...this.#all]
      .filter(({ ended }) => !ended)
      .map(({ image }) => image.info().lastError)
      .filter((last) => last !== null)
      .reduce<LastError | null>(
        (latest, { time, error }) => (latest && latest.time >= time ? latest : lastErrorOf(null, error, time)),
        this.#pastError,
      );
  }

  /** The image file is gone, or has given way to another: nobody new gets this one. */
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

  /** Syncs and closes, whoever still uses one of them. */
  async shutDown(): Promise<void> {
    const openings = [this.#becomingWriter, this.#reader];
    this.#writer = this.#reader = this.#presentReader = this.#becomingWriter = null;
    for (const opening of openings) {
      const it = await opening?.catch(() => null);
      await it?.close();
    }
  }
}
