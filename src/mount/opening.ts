/**
 * One opening of an image file, used by any number of open flat files. It is closed when it is retired (another took its
 * place, or the image file is gone) and nobody uses it any more.
 */
import type { Image } from '../engine/index.js';
import { trafficOf } from '../engine/native-operations.js';

import { sentenceOf } from './failure.js';
import { log } from './log.js';
import { noTraffic, sumOfTraffic, type Traffic } from './traffic.js';

export class Opening {
  readonly image: Image;
  readonly writable: boolean;
  /** What this process served in JavaScript. */
  readonly served: Traffic = noTraffic();
  /** Closed, or about to be: nobody new gets it. */
  ended = false;
  #users = 0;
  #retired = false;

  constructor(image: Image, writable: boolean) {
    this.image = image;
    this.writable = writable;
  }

  /** All requests, those served natively included. */
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

  /** Whoever still uses it. */
  async close(): Promise<void> {
    this.ended = true;
    await this.image.close();
  }

  #closeIfDone(): void {
    if (this.#retired && this.#users === 0) {
      this.ended = true;
      this.image.close().catch((error: unknown) => {
        log(`closing an image failed: ${sentenceOf(error)}`);
      });
    }
  }
}
