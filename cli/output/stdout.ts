/**
 * What commands print on stdout: lines for people, or JSON for programs. Everything goes through
 * `put`. So output that is lost (on a full disk) is an error of the command, and a reader that ends
 * early (`pcow list | head -1`) ends the command.
 */
import { fstatSync, writeSync } from 'node:fs';
import { once } from 'node:events';
import { isatty } from 'node:tty';
import { systemCodeOf } from '../../src/engine/errors.js';
import { Failure } from './errors.js';
import { inThisLocale } from './locale.js';
import { systemErrorOf } from '../../src/engine/system-errors.js';

const STDOUT = 1;

/** The error of an earlier write to standard output. */
let failure: Error | null = null;

/** Determined once, because standard output does not change. */
let stream: boolean | null = null;

/** The reader of standard output has ended. This is no error, and nothing needs to be printed. */
export class ReaderGone extends Error {}

/** From now on an error on standard output is kept, and thrown by the next print. */
export function watchOutput(): void {
  process.stdout.on('error', (error) => {
    failure ??= outputFailure(error);
  });
}

/** Resolves when everything is written; throws if it could not be. */
export async function outputWritten(): Promise<void> {
  if (isStream()) {
    await new Promise<void>((resolve) => {
      process.stdout.write('', () => {
        resolve();
      });
    });
  }
  throwIfLost();
}

/** Writes to stdout. Returns false if the reader is slow: `roomForMore` waits for it. */
export function put(text: string): boolean {
  throwIfLost();
  if (isStream()) return process.stdout.write(text);
  try {
    // process.stdout treats a partial write (to an almost full disk) as complete.
    const bytes = Buffer.from(text);
    for (let done = 0; done < bytes.length;) done += writeSync(STDOUT, bytes, done);
  } catch (error) {
    throw (failure = outputFailure(error));
  }
  return true;
}

export async function roomForMore(): Promise<void> {
  await once(process.stdout, 'drain').catch((error: unknown) => {
    throw outputFailure(error);
  });
}

/** The error for a failed write to standard output. */
export function outputFailure(error: unknown): Error {
  const known = systemErrorOf(error);
  if (known === null) return error instanceof Error ? error : new Error(String(error));
  if (known.name === 'EPIPE')
    return new ReaderGone('the reader of standard output has ended', { cause: error });
  return new Failure(
    systemCodeOf(known.errno),
    `standard output can't be written: ${known.meaning}`,
    known.name === 'ENOSPC' || known.name === 'EDQUOT'
      ? 'free space there, or redirect it elsewhere'
      : undefined,
  );
}

/** Prints one line (or a block of lines) for people. */
export function say(text: string): void {
  put(`${inThisLocale(text)}\n`);
}

/**
 * Prints JSON for programs. Fields are only ever added; times are ISO 8601 in UTC, sizes are bytes.
 */
export function sayJson(value: unknown): void {
  put(`${JSON.stringify(value, null, 2)}\n`);
}

/** Local time to the second, as in `ls --time-style=long-iso`. */
export function formatTime(time: Date): string {
  const two = (n: number) => String(n).padStart(2, '0');
  const date = [time.getFullYear(), two(time.getMonth() + 1), two(time.getDate())].join('-');
  return `${date} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

function throwIfLost(): void {
  if (failure !== null) throw failure;
}

/** Whether it is a terminal, a pipe or a socket; otherwise it is a file or a device. */
function isStream(): boolean {
  if (stream === null) {
    const status = fstatSync(STDOUT);
    stream = isatty(STDOUT) || status.isFIFO() || status.isSocket();
  }
  return stream;
}
