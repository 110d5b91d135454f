/**
 * One opening of an image file, used by any number of open flat files. It is closed when it has
 * been retired (another opening replaced it, or the image file is gone) and is no longer used.
 */
import type { Image } from '../../engine/index.js';
import { trafficOf } from '../../engine/native-operations.js';

import { sentenceOf } from '../failure.js';
import { log } from '../log.js';
import type { Closable } from './open-images.js';
import { noTraffic, sumOfTraffic, type Traffic } from './traffic.js';

/** The owner of openings. */
export interface OpeningOwner {
  /** See Closable. */
  closeIfIdle(opening: Opening): Promise<void> | null;
  /** The opening is closed, and its requests can be counted. */
  closed(opening: Opening): void;
}

export class Opening implements Closable {
  readonly image: Image;
  readonly writable: boolean;
  /** Of the image. */
  readonly uuid: string;
  /** Of the image and its bases. */
  readonly files: number;
  /** Requests that this process served in JavaScript. */
  readonly served: Traffic = noTraffic();
  /** Closed, or about to be: new users do not get it. */
  ended = false;
  /** While there is a grant, the opening may have users that are not counted yet. */
  grant: { takeBack(): void } | null = null;
  readonly #owner: OpeningOwner;
  #users = 0;
  #retired = false;

  constructor(image: Image, writable: boolean, owner: OpeningOwner) {
    this.image = image;
    this.writable = writable;
    const { uuid, chain } = image.info();
    this.uuid = uuid;
    this.files = new Set(chain.map(({ path }) => path)).size;
    this.#owner = owner;
  }

  /** Whether no open file needs it. */
  get idle(): boolean {
    this.grant?.takeBack();
    return this.#users === 0;
  }

  closeIfIdle(): Promise<void> | null {
    return this.idle && !this.ended ? this.#owner.closeIfIdle(this) : null;
  }

  /** All requests, including those served natively. */
  traffic(): Traffic {
    return sumOfTraffic([this.served, trafficOf(this.image)]);
  }

  use(): void {
    this.#users += 1;
  }

  release(): void {
    this.#users -= 1;
    this.#closeIfDone();
  }

  retire(): void {
    this.#retired = true;
    this.#closeIfDone();
  }

  /** Closes it even if it is used. */
  async close(): Promise<void> {
    this.grant?.takeBack();
    this.ended = true;
    try {
      await this.image.close();
    } finally {
      this.#owner.closed(this);
    }
  }

  #closeIfDone(): void {
    if (this.#retired && this.idle) {
      this.close().catch((error: unknown) => {
        log(`closing an image failed: ${sentenceOf(error)}`);
      });
    }
  }
}
