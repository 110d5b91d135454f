/** `--wait`: for whoever has an image open for writing, instead of failing at once. */
import { setTimeout as sleep } from 'node:timers/promises';
import { InvalidArgumentError, Option } from 'commander';
import { isPcowError } from '../src/engine/errors.js';

/** Milliseconds between two tries. */
const PAUSE = 100;

/** For every command that changes an image. */
export function waitOption(): Option {
  return new Option(
    '--wait <seconds>',
    'wait this long for a process that has the image open for writing; default: fail at once',
  ).argParser(parseSeconds);
}

function parseSeconds(text: string): number {
  if (!/^\d{1,6}(\.\d+)?$/.test(text)) throw new InvalidArgumentError('it must be a number of seconds.');
  return Number(text);
}

/** Does `work` again while somebody has the image, until `seconds` are over. What fails so must have changed nothing. */
export async function patiently<T>(seconds: number | undefined, work: () => Promise<T>): Promise<T> {
  const end = performance.now() + 1000 * (seconds ?? 0);
  for (let told = false; ; told = true) {
    try {
      return await work();
    } catch (error) {
      if (!isPcowError(error, 'PCOW_LOCKED') || performance.now() >= end) throw error;
      if (!told) process.stderr.write(`pcow: ${error.message}: waiting for its end\n`);
    }
    await sleep(PAUSE);
  }
}
