/**
 * A snapshot of attached images, in the steps that only their monitors can take. The order of a cut across images is the
 * caller's (src/mount/commands.ts): every one is frozen before any goes on.
 */
import type { Monitor } from './monitor.js';

/** Milliseconds for the two steps during which guests stand still. A monitor that takes longer is let go, and undoes it. */
const STEP_LIMIT = 30_000;

type Step = 'none' | 'prepared' | 'committed';

export class LiveSnapshot {
  readonly #name: string;
  readonly #automatic: boolean;
  readonly #steps: Map<Monitor, Step>;

  /** `automatic`: not asked for by name. */
  constructor(monitors: Monitor[], name: string, automatic: boolean) {
    this.#name = name;
    this.#automatic = automatic;
    this.#steps = new Map(monitors.map((monitor) => [monitor, 'none']));
  }

  /** Long: syncs. Guests go on meanwhile. */
  async prepare(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('prepare', { text: this.#name, value: this.#automatic ? 1 : 0 });
      this.#steps.set(monitor, 'prepared');
    });
  }

  /** From here on the guests stand still. */
  async cut(): Promise<void> {
    await this.#all((monitor) => monitor.request('cut', { limit: STEP_LIMIT }));
  }

  /** The guests go on. */
  async commit(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('commit', { limit: STEP_LIMIT });
      this.#steps.set(monitor, 'committed');
    });
  }

  /** Returns when it is durable. */
  async finish(): Promise<void> {
    await this.#all((monitor) => monitor.request('finish'));
  }

  /** After a failure anywhere: nothing of it stays, as far as the monitors are still there. */
  async undo(): Promise<void> {
    await Promise.allSettled(
      [...this.#steps].map(async ([monitor, step]) => {
        if (step === 'committed') {
          await monitor.request('finish').catch(() => undefined); // it may have been done already
          await monitor.request('delete', { text: this.#name });
        } else {
          await monitor.request('abort');
        }
      }),
    );
  }

  /** A step at all of them, side by side. Waits for all also where one fails: undo() must know what each has done. */
  async #all(step: (monitor: Monitor) => Promise<unknown>): Promise<void> {
    const outcomes = await Promise.allSettled([...this.#steps.keys()].map(step));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed) {
      throw failed.reason;
    }
  }
}
