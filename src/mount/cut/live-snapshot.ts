/**
 * A snapshot of attached images, in the steps that only their monitors can take. The caller
 * (src/mount/control/commands.ts) decides their order across images: every image is frozen before
 * any continues.
 */
import type { ImageEntry } from '../images/image-entry.js';
import { Halted, type Monitor, type UndoRequest } from '../../attach/monitor.js';

/**
 * Milliseconds for each of the two steps during which guests are frozen. The connection to a
 * monitor that takes longer is closed; the monitor then undoes the steps.
 */
const STEP_LIMIT = 30_000;

/**
 * 'halted': the process is stopped; what the monitor was asked for is undone when it runs again.
 */
type Step = 'none' | 'prepared' | 'committed' | 'halted';

const ABORT: UndoRequest[] = [{ name: 'abort' }];

export class LiveSnapshot {
  readonly #name: string;
  readonly #automatic: boolean;
  readonly #steps: Map<Monitor, Step>;
  readonly #entries: Map<Monitor, ImageEntry>;

  /** `automatic`: taken by Pcow itself, without a name from the user. */
  constructor(entries: Map<Monitor, ImageEntry>, name: string, automatic: boolean) {
    this.#name = name;
    this.#automatic = automatic;
    this.#entries = entries;
    this.#steps = new Map([...entries.keys()].map((monitor) => [monitor, 'none']));
  }

  get #deletion(): UndoRequest {
    return { name: 'delete', text: this.#name };
  }

  /**
   * Takes long: the monitors write changed pages back, and make the new table and layer directory
   * durable. Guests run meanwhile.
   */
  async prepare(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('prepare', {
        text: this.#name,
        value: this.#automatic ? 1 : 0,
        undo: ABORT,
      });
      this.#steps.set(monitor, 'prepared');
    });
  }

  /**
   * From here on the guests are frozen. So this and commit() are sent at once: whether a process
   * runs is found out while it is waited for.
   */
  async cut(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('cut', { limit: STEP_LIMIT, undo: ABORT, must: true });
      this.#entries.get(monitor)?.attachment.freeze(monitor, true);
    });
  }

  /** The guests continue. */
  async commit(): Promise<void> {
    await this.#all(async (monitor) => {
      await monitor.request('commit', {
        limit: STEP_LIMIT,
        undo: [{ name: 'finish' }, this.#deletion],
        must: true,
      });
      this.#steps.set(monitor, 'committed');
      this.#entries.get(monitor)?.attachment.freeze(monitor, false);
    });
  }

  /** Returns when the snapshot is durable. */
  async finish(): Promise<void> {
    await this.#all((monitor) => monitor.request('finish', { undo: [this.#deletion] }));
  }

  /**
   * After a failure in any image: removes the snapshot from all of them, as far as their monitors
   * still exist.
   */
  async undo(): Promise<void> {
    await Promise.allSettled(
      [...this.#steps].map(async ([monitor, step]) => {
        if (step === 'committed') {
          // The monitor may have finished already.
          await monitor.request('finish', { undo: [], must: true }).catch(() => undefined);
          await monitor.request('delete', { text: this.#name, undo: [], must: true });
        } else if (step !== 'halted') {
          await monitor.request('abort', { undo: [], must: true });
        }
        this.#entries.get(monitor)?.attachment.freeze(monitor, false);
      }),
    );
  }

  /**
   * Runs a step at all monitors in parallel. Waits for all of them even if one fails: undo() must
   * know what each has done.
   */
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
