/**
 * Processes that are stopped for a moment, so that none of them changes what it has mapped.
 *
 * Order, for each process: the watchdog is told, then the process is stopped; it is continued, and
 * when all have been continued, the watchdog forgets them. A process that was already stopped stays
 * stopped.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { PcowError } from '../../engine/index.js';
import { isSystemError } from '../failure.js';
import {
  describeProcess,
  linkOf,
  type Mapper,
  startTimeOf,
  stateOf,
  textOf,
  threadsOf,
} from '../../engine/processes.js';
import { debugLog } from '../log.js';
import type { Watchdog } from '../daemon/watchdog.js';

const debug = debugLog('stop');

/** Stopped by a signal or by a debugger, or not able to run any more. */
const HALTED = 'TtZXx';

/** write, pwrite64, writev, pwritev, pwritev2 */
const WRITE_CALLS: Partial<Record<string, readonly number[]>> = {
  x64: [1, 18, 20, 296, 328],
  arm64: [64, 68, 66, 70, 287],
};

export class StoppedProcesses {
  readonly #watchdog: Watchdog;
  /**
   * The directory of control files: a thread that waits in a write to a control file cannot change
   * memory until the write returns.
   */
  readonly #controlDirectory: string;
  /** pid → start time. */
  readonly #ours = new Map<number, number>();
  readonly #others = new Map<number, number>();

  constructor(watchdog: Watchdog, controlDirectory: string) {
    this.#watchdog = watchdog;
    this.#controlDirectory = controlDirectory;
  }

  has(pid: number): boolean {
    return this.#ours.has(pid) || this.#others.has(pid);
  }

  /** Begins to stop a process; settled() says when it has stopped. */
  async stop({ pid, startTime }: Mapper): Promise<void> {
    const threads = await threadsOf(pid);
    const states = await Promise.all(threads.map((thread) => stateOf(pid, thread)));
    if (states.length > 0 && states.every((state) => state === 'T' || state === 't')) {
      this.#others.set(pid, startTime);
      return;
    }
    await this.#watchdog.guard(pid, startTime);
    if ((await startTimeOf(pid)) !== startTime) {
      return; // it has ended; its pages now belong to the kernel, and are flushed
    }
    this.#ours.set(pid, startTime);
    try {
      process.kill(pid, 'SIGSTOP');
      debug('stopped %d', pid);
    } catch (error) {
      this.#ours.delete(pid);
      if (isSystemError(error, 'ESRCH')) {
        return;
      }
      throw new PcowError(
        'PCOW_BUSY',
        `${await describeProcess(pid)} has the image mapped, and this mount may not stop it: run the mount as its user or as root`,
        { cause: error },
      );
    }
  }

  /**
   * Waits until none of their threads runs. Returns a process that still runs after `limit`
   * milliseconds, or null.
   */
  async settled(limit: number): Promise<string | null> {
    const deadline = Date.now() + limit;
    for (;;) {
      const running = await this.#firstRunning();
      if (running === null) {
        return null;
      }
      if (Date.now() > deadline) {
        return describeProcess(running);
      }
      await sleep(1);
    }
  }

  /** A process that another program has continued meanwhile, or null. */
  async disturbed(): Promise<string | null> {
    const running = await this.#firstRunning();
    return running === null ? null : describeProcess(running);
  }

  async #firstRunning(): Promise<number | null> {
    for (const pid of [...this.#ours.keys(), ...this.#others.keys()]) {
      for (const thread of await threadsOf(pid)) {
        const state = await stateOf(pid, thread);
        if (
          state !== null &&
          !HALTED.includes(state) &&
          !(await this.#waitsForControlFile(pid, thread))
        ) {
          return pid;
        }
      }
    }
    return null;
  }

  /**
   * A process may request a snapshot of what it has mapped itself. Such a thread cannot stop before
   * its write returns.
   */
  async #waitsForControlFile(pid: number, thread: number): Promise<boolean> {
    const [call, descriptor] = (await textOf(`/proc/${pid}/task/${thread}/syscall`)).split(' ');
    if (
      call === undefined ||
      descriptor === undefined ||
      !WRITE_CALLS[process.arch]?.includes(Number(call))
    ) {
      return false;
    }
    const file = await linkOf(`/proc/${pid}/fd/${Number(descriptor)}`);
    return file.startsWith(`${this.#controlDirectory}/`);
  }

  /** Continues the processes that this object has stopped. Never fails. */
  async continueAll(): Promise<void> {
    for (const [pid, startTime] of this.#ours) {
      if ((await startTimeOf(pid)) === startTime) {
        try {
          process.kill(pid, 'SIGCONT');
          debug('continued %d', pid);
        } catch (error) {
          debug('%d could not be continued: %o', pid, error);
        }
      }
    }
    this.#ours.clear();
    this.#others.clear();
    await this.#watchdog.done().catch((error: unknown) => {
      debug('the watchdog is gone: %o', error);
    });
  }
}
