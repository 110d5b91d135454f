/**
 * A process that stores numbers into a monitored mapping (stored-numbers.c), and the numbers that
 * must be found whatever dies.
 */
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { ExecutionContext } from 'ava';

import { Image } from '../../src/engine/index.js';
import { imagesFor, MiB, type TestMount } from './mount.js';
import { imageOnBase, monitored } from './monitored.js';
import { type Conversation, program } from './program.js';

export const PAGE = 4096;
export const PAGES = 1500;
const STEP = 37;

/** stored-numbers.c on an image over a base. */
export class NumberWriter {
  #process: Conversation | null = null;

  private constructor(
    readonly mount: TestMount,
    readonly file: string,
    readonly progress: string,
    readonly settings: Record<string, string>,
  ) {}

  static async prepare(
    t: ExecutionContext<unknown>,
    settings: Record<string, string>,
  ): Promise<NumberWriter> {
    const mount = await imagesFor(t, {});
    // A page's number must be 0 before its first write: data of the base is not in the first bytes.
    await imageOnBase(mount, 'vm1', 8 * MiB, (block) => (block % 3 === 0 ? 0 : 1));
    const image = await Image.open(mount.image('vm1'), { write: true });
    for (let page = 0; page < PAGES; page += 1) await image.write(Buffer.alloc(8), page * PAGE);
    await image.snapshot('zeros');
    await image.close();
    const progress = path.join(mount.scratch, 'progress');
    await writeFile(progress, Buffer.alloc(PAGE));
    return new NumberWriter(
      mount,
      await program('stored-numbers', mount.scratch),
      progress,
      settings,
    );
  }

  get process(): Conversation {
    if (!this.#process) throw new Error('it does not run');
    return this.#process;
  }

  async start(first: number): Promise<void> {
    const words = [this.mount.file('vm1'), this.progress, String(PAGES), String(first)];
    this.#process = await monitored(this.mount.t, this.file, words, this.settings);
  }

  async stored(): Promise<number> {
    return Number((await readFile(this.progress)).readBigUInt64LE(0));
  }

  async flushed(): Promise<number> {
    return Number((await readFile(this.progress)).readBigUInt64LE(8));
  }

  /** Waits for a flush that began after now. */
  async flushesAgain(): Promise<void> {
    const wanted = (await this.stored()) + 32;
    for (let tries = 0; tries < 500; ++tries) {
      if ((await this.flushed()) >= wanted) return;
      await sleep(20);
    }
    throw new Error('the process does not flush any more');
  }
}

/**
 * Every page must have the last number up to `last` that was stored there; the one after may be
 * there as well. Returns the last number found.
 */
export function checkNumbers(bytes: Buffer, last: number): number {
  const wanted = new Map<number, number>();
  for (let number = Math.max(1, last - PAGES + 1); number <= last; ++number)
    wanted.set((number * STEP) % PAGES, number);
  let newest = last;
  for (let page = 0; page < PAGES; ++page) {
    const found = Number(bytes.readBigUInt64LE(page * PAGE));
    if (found === (wanted.get(page) ?? 0)) continue;
    if (found !== last + 1 || (found * STEP) % PAGES !== page) {
      throw new Error(
        `page ${page} holds ${found} in place of ${wanted.get(page) ?? 0}; ${last} was the last`,
      );
    }
    newest = found;
  }
  return newest;
}

/** A snapshot has all numbers up to one of them, which must be in a range. */
function checkSnapshot(bytes: Buffer, from: number, to: number): void {
  let newest = 0;
  for (let page = 0; page < PAGES; ++page)
    newest = Math.max(newest, Number(bytes.readBigUInt64LE(page * PAGE)));
  if (newest < from || newest > to + 1)
    throw new Error(`it ends with ${newest}, not between ${from} and ${to}`);
  checkNumbers(bytes, newest);
}

/** Reads a snapshot. Returns the check that it has all numbers up to one in a range. */
export async function checkerOf(
  mount: TestMount,
  name: string,
  from: number,
  to: number,
): Promise<() => void> {
  const bytes = await readFile(mount.control('vm1', 'at', name));
  return () => {
    checkSnapshot(bytes, from, to);
  };
}
