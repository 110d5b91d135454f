/**
 * The watchdog: a process of its own that continues stopped processes if the mount dies before it could.
 *
 * It lives behind a pipe (watchdog-process.ts). Before the mount stops a process it writes that process's pid and start
 * time into the pipe; what is in a pipe outlives its writer. Once they have been continued it writes "done". When the
 * pipe ends, the watchdog continues whatever is still on its list.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';

import { PcowError } from '../engine/index.js';
import { debugLog } from './log.js';

const debug = debugLog('watchdog');

const PROGRAM = fileURLToPath(new URL('watchdog-process.js', import.meta.url));

export class Watchdog {
  #child: ChildProcess | null = null;

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Before the first process is stopped. Starts the watchdog where it does not run yet. */
  async ready(): Promise<void> {
    if (this.#child && this.#child.exitCode === null && this.#child.signalCode === null) {
      return;
    }
    // A session of its own: what kills the mount's process group must not reach it.
    const child = spawn(process.execPath, [PROGRAM], {
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      cwd: '/',
    });
    child.on('exit', () => {
      debug('the watchdog %d has ended', child.pid);
    });
    child.stdin.on('error', () => undefined); // reported to the writer
    try {
      const [greeting] = (await Promise.race([
        once(child.stdout, 'data'),
        once(child, 'exit').then(() => Promise.reject(new Error('it ended at once'))),
      ])) as [Buffer];
      debug('the watchdog %d says %s', child.pid, greeting.toString().trim());
    } catch (cause) {
      throw new PcowError('PCOW_BUSY', 'the watchdog that a snapshot of a mapped image needs could not be started', {
        cause,
      });
    }
    child.unref();
    for (const stream of [child.stdin, child.stdout]) {
      (stream as unknown as { unref(): void }).unref();
    }
    this.#child = child;
  }

  /** Before a process is stopped; on return the watchdog will continue it if this process dies. */
  async guard(pid: number, startTime: number): Promise<void> {
    await this.#tell(`${pid} ${startTime}\n`);
  }

  /** After all have been continued. */
  async done(): Promise<void> {
    await this.#tell('done\n');
  }

  /** It ends by itself once its pipe does. */
  close(): void {
    this.#child?.stdin?.end();
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
