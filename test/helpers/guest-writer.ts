/**
 * A real guest that stores and flushes numbers (scripts/guest/numbers.c), and the numbers that must
 * be found whatever dies.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Readable } from 'node:stream';

import type { ExecutionContext } from 'ava';

import { accelerator } from '../../scripts/guest/accelerator.js';
import { pmemArgs, qemuCommand } from '../../scripts/guest/guest.js';

const PAGE = 4096;
const WORDS = PAGE / 8;
const STEP = 37;

export const GUEST_PAGES = 1000;

export class GuestWriter {
  readonly #process: ChildProcessByStdio<null, Readable, null>;
  readonly #ended: Promise<unknown>;
  #said = '';

  private constructor(t: ExecutionContext<unknown>, command: string[]) {
    this.#process = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...command], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => this.#process.kill('SIGKILL'));
    this.#ended = once(this.#process, 'close');
    this.#process.stdout.setEncoding('latin1').on('data', (text: string) => (this.#said += text));
  }

  /**
   * `prefix`: the command before QEMU, such as monitorPrefix(). `first`: the first number that it
   * stores.
   */
  static async boot(
    t: ExecutionContext<unknown>,
    file: string,
    size: number,
    first: number,
    prefix: string[],
  ): Promise<GuestWriter> {
    const command = qemuCommand(
      { accelerator: await accelerator(), commandPrefix: prefix, qemuArgs: pmemArgs(file, size) },
      ['numbers', String(GUEST_PAGES), String(first)],
    );
    return new GuestWriter(t, [...command, '-serial', 'null', '-serial', 'stdio']);
  }

  /** Resolves when it begins to store. */
  async ready(): Promise<void> {
    await this.#says(/^ready 0\r?\n/);
  }

  /** Resolves when a flush in the guest has failed with EIO, after which it stops storing. */
  async failed(): Promise<void> {
    await this.#says(/^failed 5\r?\n/m);
  }

  async #says(line: RegExp): Promise<void> {
    while (!line.test(this.#said)) {
      if (/^failed \d+\r?\n/m.test(this.#said)) throw new Error(`the guest said: ${this.#said}`);
      await Promise.race([
        once(this.#process.stdout, 'data'),
        this.#ended.then(() => {
          throw new Error('QEMU has ended');
        }),
      ]);
    }
  }

  /**
   * The last number whose flush has returned; 0: none yet. All earlier numbers are flushed as well.
   */
  get flushed(): number {
    return Number([...this.#said.matchAll(/^flushed (\d+)\r?\n/gm)].at(-1)?.[1] ?? 0);
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#ended;
  }
}

/**
 * Every page must have the last number up to `flushed` that was stored there, or a later one of its
 * own. If the guest was killed while it stored, the page may be between two numbers.
 */
export function checkGuestNumbers(bytes: Buffer, flushed: number): void {
  const wanted = new Map<number, number>();
  for (let number = Math.max(1, flushed - GUEST_PAGES + 1); number <= flushed; ++number)
    wanted.set((number * STEP) % GUEST_PAGES, number);
  for (let page = 0; page < GUEST_PAGES; ++page) {
    const least = wanted.get(page) ?? 0;
    for (let i = 0; i < WORDS; ++i) {
      const word = Number(bytes.readBigUInt64LE(page * PAGE + i * 8));
      if (word === 0 && least === 0) continue;
      const number = (word - i) / WORDS;
      if (!Number.isInteger(number) || number < least || (number * STEP) % GUEST_PAGES !== page) {
        throw new Error(
          `word ${i} of page ${page} is ${word}, of number ${number}, in place of ${least} or later`,
        );
      }
    }
  }
}
