/**
 * The watchdog: a separate process that does what the mount still had to do when it is killed. It
 * continues stopped processes, and makes durable what the mount has written to images but not
 * synced: without it, an orderly restart of the host would lose this (docs/durability.md).
 *
 * It is started before the first image is opened for writing, and reads from a pipe
 * (watchdog-process.ts). Before the mount stops a process, it writes the process's pid and start
 * time to the pipe. The contents of a pipe survive their writer. After the processes have been
 * continued, the mount writes "done". When the pipe ends, the watchdog continues the processes that
 * are still on its list. A mount that ends properly says so first.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Writable } from 'node:stream';

import { WATCHDOG_PROGRAM } from '../../engine/built.js';
import { PcowError } from '../../engine/index.js';
import { startTimeOf } from '../../engine/processes.js';
import { debugLog } from '../log.js';

const debug = debugLog('watchdog');

export class Watchdog {
  readonly #directory: string;
  #child: ChildProcess | null = null;
  #starting: Promise<ChildProcess> | null = null;
  /** Resolves when the child has said that it listens. */
  #greeted: Promise<void> = Promise.resolve();

  /** For the mount of this image directory. */
  constructor(directory: string) {
    this.#directory = directory;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /**
   * Call before an image is opened for writing. On return there is a process that will notice the
   * end of this one.
   */
  async start(): Promise<void> {
    await this.#running();
  }

  /** Call before the first process is stopped. On return the watchdog listens. */
  async ready(): Promise<void> {
    try {
      await this.#running();
      await this.#greeted;
    } catch (cause) {
      throw new PcowError(
        'PCOW_BUSY',
        'could not start the watchdog, which a snapshot of a mapped image needs',
        {
          cause,
        },
      );
    }
  }

  #running(): Promise<ChildProcess> {
    const child = this.#child;
    if (child?.exitCode === null && child.signalCode === null) {
      return Promise.resolve(child);
    }
    this.#starting ??= this.#spawn().finally(() => {
      this.#starting = null;
    });
    return this.#starting;
  }

  async #spawn(): Promise<ChildProcess> {
    const startTime = await startTimeOf(process.pid);
    // In its own session: a kill of the mount's process group must not reach it.
    const child = spawn(
      process.execPath,
      [WATCHDOG_PROGRAM, this.#directory, `${process.pid}`, `${startTime ?? 0}`],
      {
        detached: true,
        stdio: ['pipe', 'pipe', 'ignore'],
        cwd: '/',
      },
    );
    const failed = new Promise<never>((_resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => {
        debug('the watchdog %d has ended', child.pid);
        reject(new Error('the watchdog has ended'));
      });
    });
    failed.catch(() => undefined); // reported to the caller that waits for it
    child.stdin.on('error', () => undefined); // reported to the writer
    this.#greeted = Promise.race([once(child.stdout, 'data'), failed]).then(() => {
      debug('the watchdog %d is ready', child.pid);
    });
    this.#greeted.catch(() => undefined);
    await Promise.race([once(child, 'spawn'), failed]);
    child.unref();
    for (const stream of [child.stdin, child.stdout]) {
      (stream as unknown as { unref(): void }).unref();
    }
    this.#child = child;
    return child;
  }

  /**
   * Call before a process is stopped. On return the watchdog will continue it if this process dies.
   */
  async guard(pid: number, startTime: number): Promise<void> {
    await this.#tell(`${pid} ${startTime}\n`);
  }

  /** Call after all have been continued. */
  async done(): Promise<void> {
    await this.#tell('done\n');
  }

  /** The mount has closed its images. The watchdog ends by itself when its pipe ends. */
  close(): void {
    this.#child?.stdin?.end('end\n');
    this.#child = null;
  }

  #tell(line: string): Promise<void> {
    const pipe: Writable | null = this.#child?.stdin ?? null;
    return new Promise((resolve, reject) => {
      if (!pipe) {
        reject(new PcowError('PCOW_BUSY', 'the watchdog is not running'));
        return;
      }
      pipe.write(line, (error) => {
        if (error) {
          reject(new PcowError('PCOW_BUSY', 'the watchdog has died: try again', { cause: error }));
        } else {
          resolve();
        }
      });
    });
  }
}
