/**
 * A snapshot of attached images, in the steps that only their monitors can take. The order of a cut across images is the
 * caller's (src/mount/control/commands.ts): every one is frozen before any goes on.
 */
import type { ImageEntry } from '../images/image-entry.js';
import { Halted, type Monitor, type UndoRequest } from '../../attach/monitor.js';

/** Milliseconds for the two steps during which guests stand still. A monitor that takes longer is let go, and undoes it. */
const STEP_LIMIT = 30_000;

/** 'halted': what it has been asked for is undone when it runs again. */
type Step = 'none' | 'prepared' | 'committed' | 'halted';

const ABORT: UndoRequest[] = [{ name: 'abort' }];

export class LiveSnapshot {
  readonly #name: string;
  readonly #automatic: boolean;
  readonly #steps: Map<Monitor, Step>;
  readonly #entries: Map<Monitor, ImageEntry>;

  /** `automatic`: not asked for by name. */
  constructor(entries: Map<Monitor, ImageEntry>, name: string, automatic: boolean) {
    this.#name = name;
    this.#automatic = automatic;
    this.#entries = entries;
    this.#steps = new Map([...entries.keys()].map((monitor) => [monitor, 'none']));
  }

  get #deletion(): UndoRequest {
    return { name: 'delete', text: this.#name };
  }

  /** Long: syncs. Guests go on meanwhile. */
  async prepare(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('prepare', { text: this.#name, value: this.#automatic ? 1 : 0, undo: ABORT });
      this.#steps.set(monitor, 'prepared');
    });
  }

  /** From here on the guests stand still. */
  async cut(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('cut', { limit: STEP_LIMIT, undo: ABORT });
      this.#entries.get(monitor)?.attachment.freeze(monitor, true);
    });
  }

  /** The guests go on. */
  async commit(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('commit', { limit: STEP_LIMIT, undo: [{ name: 'finish' }, this.#deletion] });
      this.#steps.set(monitor, 'committed');
      this.#entries.get(monitor)?.attachment.freeze(monitor, false);
    });
  }

  /** Returns when it is durable. */
  async finish(): Promise<void> {
    await this.#all((monitor) => monitor.request('finish', { undo: [this.#deletion] }));
  }

  /** After a failure anywhere: nothing of it stays, as far as the monitors are still there. */
  async undo(): Promise<void> {
    await Promise.allSettled(
      [...this.#steps].map(async ([monitor, step]) => {
        if (step === 'committed') {
          // It may have been done already.
          await monitor.request('finish', { undo: [], must: true }).catch(() => undefined);
          await monitor.request('delete', { text: this.#name, undo: [], must: true });
        } else if (step !== 'halted') {
          await monitor.request('abort', { undo: [], must: true });
        }
        this.#entries.get(monitor)?.attachment.freeze(monitor, false);
      }),
    );
  }

  /** A step at all of them, side by side. Waits for all also where one fails: undo() must know what each has done. */
  async #all(step: (monitor: Monitor) => Promise<unknown>): Promise<void> {
    const outcomes = await Promise.allSettled(
      [...this.#steps.keys()].map((monitor) =>
        step(monitor).catch((error: unknown) => {
          if (error instanceof Halted) {
            this.#steps.set(monitor, 'halted');
          }
          throw error;
        }),
      ),
    );
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed) {
      throw failed.reason;
    }
  }
}
