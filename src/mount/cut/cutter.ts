/**
 * A cut: at this moment the mount has exactly what the images' mappers have written, no more and no
 * less.
 *
 * A process changes pages in a shared mapping of a flat file. They reach the mount when the kernel
 * writes them back, in any order. So the processes are stopped, the kernel is made to write back
 * everything, and only then the snapshot is taken. Writes by write(2) need none of this, because
 * they arrive in order.
 *
 * A helper process requests the write-back, because a request of this process to its own mount
 * would wait for itself. It is done twice: first while the processes run, so that little is left to
 * do while they are stopped.
 */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { PcowError } from '../../engine/index.js';
import { sentenceOf } from '../failure.js';
import { describeProcess, type Mapper, mappersOf } from '../../engine/processes.js';
import type { ImageEntry } from '../images/image-entry.js';
import { debugLog } from '../log.js';
import { Mutex } from '../../engine/mutex.js';
import { flatFilePath, type Place } from '../place.js';
import { StoppedProcesses } from './stopped-processes.js';

const debug = debugLog('cut');
const run = promisify(execFile);

/**
 * Milliseconds in which stopped processes must come to rest, for each attempt. A process that waits
 * for a child which is stopped too (vfork) never does. It is continued, and the next attempt finds
 * it in another state.
 */
const ATTEMPTS = [1000, 2000, 4000];

/** Milliseconds for the write-back while processes are stopped. */
const FLUSH_LIMIT = 60_000;

export class Cutter {
  readonly #place: Place;
  readonly #inodeOf: (entry: ImageEntry) => Promise<bigint>;
  /** One cut at a time: two cuts must not stop and continue the same processes. */
  readonly #cuts = new Mutex();

  constructor(place: Place, inodeOf: (entry: ImageEntry) => Promise<bigint>) {
    this.#place = place;
    this.#inodeOf = inodeOf;
  }

  /**
   * Runs `take` at a cut of these images. If another program continued a process meanwhile, it was
   * no cut: `undo` removes what `take` made, and the call fails with PCOW_BUSY.
   */
  async run<T>(
    entries: ImageEntry[],
    take: () => Promise<T>,
    undo: (taken: T) => Promise<void>,
  ): Promise<T> {
    return this.#cuts.run(async () => {
      const open = entries.filter((entry) => entry.openForWriting);
      if (open.length === 0) {
        return take();
      }
      const inodes = await this.#inodesOf(open);
      const mappers = await this.mappers(open);
      await this.flush(open);
      if (mappers.length === 0) {
        return take();
      }
      if (!this.#place.settings.stopMappers) {
        const who = await Promise.all(mappers.map(({ pid }) => describeProcess(pid)));
        throw new PcowError(
          'PCOW_BUSY',
          `${namesOf(open)} is mapped by ${who.join(', ')}, and this mount does not stop processes (--no-stop): ` +
            'end them first, or mount without --no-stop',
        );
      }
      return this.#stopAndTake(open, inodes, take, undo);
    });
  }

  async #stopAndTake<T>(
    open: ImageEntry[],
    inodes: Set<bigint>,
    take: () => Promise<T>,
    undo: (taken: T) => Promise<void>,
  ): Promise<T> {
    await this.#place.watchdog.ready();
    const stopped = new StoppedProcesses(
      this.#place.watchdog,
      path.join(this.#place.mountpoint, '.pcow'),
    );
    const began = performance.now();
    let taken: T;
    let disturbed: string | null;
    try {
      do {
        await this.#stopAll(stopped, inodes, open);
        await this.flush(open, FLUSH_LIMIT);
        // A process that began to map a file since the last check may have changed pages before or
        // after the flush.
      } while ((await this.#newcomers(stopped, inodes)).length > 0);
      taken = await take();
      disturbed = await stopped.disturbed();
    } finally {
      await stopped.continueAll();
      const seconds = (performance.now() - began) / 1000;
      debug('%s: processes were stopped for %d s', namesOf(open), seconds);
      for (const entry of open) {
        entry.stops.count += 1;
        entry.stops.seconds += seconds;
      }
    }
    if (disturbed !== null) {
      await undo(taken);
      throw new PcowError(
        'PCOW_BUSY',
        `${disturbed}, stopped for a snapshot of ${namesOf(open)}, was continued by another program: there is no snapshot, try again`,
      );
    }
    return taken;
  }

  /**
   * Stops every mapper, and those that appear meanwhile: forks, and processes that have just mapped
   * a file.
   */
  async #stopAll(
    stopped: StoppedProcesses,
    inodes: Set<bigint>,
    open: ImageEntry[],
  ): Promise<void> {
    let running: string | null = null;
    for (const limit of ATTEMPTS) {
      running = null;
      while (running === null) {
        const newcomers = await this.#newcomers(stopped, inodes);
        if (newcomers.length === 0) {
          return;
        }
        for (const mapper of newcomers) {
          await stopped.stop(mapper);
        }
        running = await stopped.settled(limit);
      }
      debug('%s did not stop within %d ms', running, limit);
      await stopped.continueAll();
    }
    throw new PcowError(
      'PCOW_BUSY',
      `${running ?? 'a process'} has ${namesOf(open)} mapped and did not stop: try again`,
    );
  }

  async #newcomers(stopped: StoppedProcesses, inodes: Set<bigint>): Promise<Mapper[]> {
    const mappers = await mappersOf(this.#place.device, inodes);
    return mappers.filter(({ pid }) => !stopped.has(pid));
  }

  /** The processes that have one of the images mapped, shared and writable, without a monitor. */
  async mappers(entries: ImageEntry[]): Promise<Mapper[]> {
    return mappersOf(this.#place.device, await this.#inodesOf(entries));
  }

  async #inodesOf(entries: ImageEntry[]): Promise<Set<bigint>> {
    return new Set(await Promise.all(entries.map(this.#inodeOf)));
  }

  /**
   * Makes the kernel write back the changed pages of their mappings. `limit` in milliseconds. A
   * helper that is stuck in the kernel cannot be killed, so the limit does not wait for its end.
   */
  async flush(entries: ImageEntry[], limit?: number): Promise<void> {
    const files = entries.map(({ name }) => flatFilePath(this.#place, name));
    const over = new AbortController();
    try {
      const helper = run('sync', ['--data', '--', ...files], {
        cwd: '/',
        signal: over.signal,
        killSignal: 'SIGKILL',
      });
      await (limit === undefined ? helper : Promise.race([helper, failAfter(limit, over)]));
    } catch (error) {
      throw new PcowError(
        'PCOW_IO',
        `the changed pages of ${namesOf(entries)} could not be written back: ${sentenceOf(error)}`,
        { cause: error },
      );
    } finally {
      over.abort();
    }
  }
}

async function failAfter(limit: number, over: AbortController): Promise<never> {
  await sleep(limit, undefined, { signal: over.signal, ref: false });
  throw new Error(`it took longer than ${limit / 1000} s`);
}

function namesOf(entries: ImageEntry[]): string {
  return entries.map(({ name }) => name).join(', ');
}
