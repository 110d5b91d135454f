/** A command on an image that takes long, while it runs: `status` tells how far it is, and `cancel` stops it. */
import type { LongOptions } from '../../engine/index.js';

export class Work {
  readonly since = new Date();
  /** In the command's own unit; `done` is `total` at the end. Both are 0 until it tells. */
  done = 0;
  total = 0;
  readonly #stop = new AbortController();

  /** `text`: what was written to the control file. */
  constructor(
    readonly command: string,
    readonly text: string,
  ) {}

  get options(): LongOptions {
    return {
      signal: this.#stop.signal,
      onProgress: (done, total) => {
        this.done = done;
        this.total = total;
      },
    };
  }

  stop(): void {
    this.#stop.abort();
  }
}
