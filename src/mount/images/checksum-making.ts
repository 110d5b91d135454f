/**
 * The making of checksums for the snapshots of one image: by command, and in the background after snapshots. That takes
 * none of the locks of commands, so nobody waits for it; what closes the image, or hands it to a monitor, stops it first.
 */
import { type Image, isPcowError, type LongOptions } from '../../engine/index.js';

export class ChecksumMaking {
  readonly #running = new Map<AbortController, Promise<void>>();
  #background: Promise<void> | null = null;
  #again = false;
  #stopped = false;

  /** Whether any are being made. */
  get busy(): boolean {
    return this.#background !== null || this.#running.size > 0;
  }

  /** Returns when everything that was frozen at the call has checksums. PCOW_CANCELLED where it is stopped. */
  async run(image: Image, { signal, ...options }: LongOptions & { background?: boolean }): Promise<void> {
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

  /** Has it done soon, and once only for several calls. `failed` is told of what goes wrong. */
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

  /** Ends it, and waits for that: after the step that each is at, leaving what is done. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const abort of this.#running.keys()) abort.abort();
    await Promise.all([...this.#running.values(), this.#background]);
  }
}
