/**
 * A long command on an image, while it runs: `status` shows its progress, and `cancel` stops it.
 */
import type { LongOptions } from '../../engine/index.js';

export class Work {
  readonly since = new Date();
  /**
   * In the command's own unit; `done` equals `total` at the end. Both are 0 until the command
   * reports progress.
   */
  done = 0;
  total = 0;
  readonly #stop = new AbortController();

  /** `text`: the text that was written to the control file. */
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
