/**
 * The openings of one image file: one to look at it, from the first look on; in its place one to write it, which takes the image's
 * lock, from the first command or the first open for writing on.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { Image, isPcowError, PcowError } from '../engine/index.js';
import { sentenceOf } from './failure.js';
import { type LastError, lastErrorOf } from './last-error.js';
import { debugLog, log } from './log.js';
import { Opening } from './opening.js';
import type { Place } from './place.js';
import { sumOfTraffic, type Traffic } from './traffic.js';

const debug = debugLog('image');

/** Milliseconds for which a failed opening is not tried again. */
const RETRY_AFTER = 1000;

/**
 * Milliseconds: the lock of a process that ended is released a moment after its connection; and a monitor whose mount has died comes to
 * the next one within a fifth of a second.
 */
const LOCK_GRACE = 3000;

export class Openings {
  /** Its names change by `mv`. */
  readonly #image: { readonly name: string; readonly file: string };
  readonly #place: Place;
  readonly #refused: PcowError | null;
  /** Every opening since the mount began: their traffic counts on after they are closed. */
  readonly #all: Opening[] = [];
  #reader: Promise<Opening> | null = null;
  #writer: Opening | null = null;
  #becomingWriter: Promise<Opening> | null = null;
  #failure: { error: unknown; at: number } | null = null;
  /** Until when a lock that somebody holds is waited for, in milliseconds. */
  #lockGrace = Date.now() + LOCK_GRACE;

  /** `refused`: why the file must not even be opened. */
  constructor(image: { readonly name: string; readonly file: string }, place: Place, refused: PcowError | null) {
    this.#image = image;
    this.#place = place;
    this.#refused = refused;
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
    if (this.#writer) {
      return this.#writer;
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
        () => {
          this.#failure = null;
        },
        (error: unknown) => {
          debug('%s: %s', this.#image.name, sentenceOf(error));
          this.#failure = { error, at: Date.now() };
          this.#reader = null;
        },
      );
    }
    return this.#reader;
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
      this.#reader = null;
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
    const image = await Image.open(this.#image.file, { write, ...(baseRoot && { baseRoot }) });
    const opening = new Opening(image, write);
    this.#all.push(opening);
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
      move(writer, await reader);
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
    return sumOfTraffic(this.#all.map((opening) => opening.traffic()));
  }

  /** Of the last request that failed on an opening that is still there. */
  lastError(): LastError | null {
    return this.#all
      .filter(({ ended }) => !ended)
      .map(({ image }) => image.info().lastError)
      .filter((last) => last !== null)
      .reduce<LastError | null>(
        (latest, { time, error }) => (latest && latest.time >= time ? latest : lastErrorOf(null, error, time)),
        null,
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
    this.#writer = this.#reader = this.#becomingWriter = null;
  }

  /** Syncs and closes, whoever still uses one of them. */
  async shutDown(): Promise<void> {
    const openings = [this.#becomingWriter, this.#reader];
    this.#writer = this.#reader = this.#becomingWriter = null;
    for (const opening of openings) {
      const it = await opening?.catch(() => null);
      await it?.close();
    }
  }
}
