/**
 * The watchdog: a process of its own that does what the mount would still have to do, if that is killed. It continues
 * stopped processes, and makes durable what the mount has written to images and not synced: until then an orderly
 * restart of the host would lose it (docs/durability.md).
 *
 * It is started before the first image is opened for writing, and lives behind a pipe (watchdog-process.ts). Before the mount stops a process it writes that process's pid and start
 * time into the pipe; what is in a pipe outlives its writer. Once they have been continued it writes "done". When the
 * pipe ends, the watchdog continues whatever is still on its list. A mount that ends in order says so first.
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

  /** Of the mount of this image directory. */
  constructor(directory: string) {
    this.#directory = directory;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Before an image is opened for writing: on return there is a process that will notice the end of this one. */
  async start(): Promise<void> {
    await this.#running();
  }

  /** Before the first process is stopped: on return the watchdog listens. */
  async ready(): Promise<void> {
    try {
      await this.#running();
      await this.#greeted;
    } catch (cause) {
      throw new PcowError('PCOW_BUSY', 'the watchdog that a snapshot of a mapped image needs could not be started', {
        cause,
      });
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
    // A session of its own: what kills the mount's process group must not reach it.
    const child = spawn(process.execPath, [WATCHDOG_PROGRAM, this.#directory, `${process.pid}`, `${startTime ?? 0}`], {
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      cwd: '/',
    });
    const failed = new Promise<never>((_resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => {
        debug('the watchdog %d has ended', child.pid);
        reject(new Error('the watchdog has ended'));
      });
    });
    failed.catch(() => undefined); // reported to who waits for it
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

  /** Before a process is stopped; on return the watchdog will continue it if this process dies. */
  async guard(pid: number, startTime: number): Promise<void> {
    await this.#tell(`${pid} ${startTime}\n`);
  }

  /** After all have been continued. */
  async done(): Promise<void> {
    await this.#tell('done\n');
  }

  /** The mount has closed its images. The watchdog ends by itself once its pipe does. */
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
