/**
 * Makes checksums for the snapshots of one image: on command, and in the background after
 * snapshots. The background work takes none of the locks of commands, so no command waits for it.
 * Code that closes the image, or hands it to a monitor, stops this work first.
 */
import { type Image, isPcowError, type LongOptions } from '../../engine/index.js';

export class ChecksumMaking {
  readonly #running = new Map<AbortController, Promise<void>>();
  #background: Promise<void> | null = null;
  #again = false;
  #stopped = false;

  /** Whether checksums are being made. */
  get busy(): boolean {
    return this.#background !== null || this.#running.size > 0;
  }

  /**
   * Returns when everything that was frozen at the call has checksums. Fails with PCOW_CANCELLED if
   * it is stopped.
   */
  async run(
    image: Image,
    { signal, ...options }: LongOptions & { background?: boolean },
  ): Promise<void> {
    const abort = new AbortController();
    const stop = () => {
      abort.abort();
    };
    signal?.addEventListener('abort', stop, { once: true });
    const making = image.addChecksums({ ...options, signal: abort.signal });
    this.#running.set(
      abort,
      making.catch(() => undefined),
    );
    try {
      await making;
    } finally {
      signal?.removeEventListener('abort', stop);
      this.#running.delete(abort);
    }
  }

  /**
   * Requests checksums in the background. Several requests are done together. `failed` gets the
   * errors.
   */
  start(open: () => Promise<Image>, failed: (error: unknown) => void): void {
    this.#stopped = false;
    if (this.#background) {
      this.#again = true;
      return;
    }
    this.#background = this.#loop(open, failed).finally(() => {
      this.#background = null;
    });
  }

  async #loop(open: () => Promise<Image>, failed: (error: unknown) => void): Promise<void> {
    do {
      this.#again = false;
      try {
        const image = await open();
        if (!this.#stopped) await this.run(image, { background: true });
      } catch (error) {
        if (!isPcowError(error, 'PCOW_CANCELLED') && !this.#stopped) failed(error);
      }
    } while (this.#again && !this.#stopped);
  }

  /** Stops all work after the step that it is at, and waits for that. What is done is kept. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const abort of this.#running.keys()) abort.abort();
    await Promise.all([...this.#running.values(), this.#background]);
  }
}
