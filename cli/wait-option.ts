/**
 * `--wait`: waits for a process that has an image open for writing, or a directory mounted, instead
 * of failing at once.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { InvalidArgumentError, Option } from 'commander';
import { isPcowError, type PcowError } from '../src/engine/errors.js';

/**
 * Milliseconds between two attempts: the first pause, and the longest. An attempt may start a
 * process (mount).
 */
const PAUSE = 100;
const LONGEST_PAUSE = 1000;

/** For every command that changes an image, and for mount. `whom`: the process to wait for. */
export function waitOption(whom = 'a process that has the image open for writing'): Option {
  return new Option(
    '--wait <seconds>',
    `wait this long for ${whom}; default: fail at once`,
  ).argParser(parseSeconds);
}

function parseSeconds(text: string): number {
  if (!/^\d{1,6}(\.\d+)?$/.test(text))
    throw new InvalidArgumentError('it must be a number of seconds.');
  return Number(text);
}

/**
 * Repeats `work` while a process has the image, until `seconds` have passed. A failed attempt must
 * have changed nothing. Inside of withProgress(), pass its `signal`, which ends the wait.
 */
export async function patiently<T>(
  seconds: number | undefined,
  work: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const end = performance.now() + 1000 * (seconds ?? 0);
  for (let pause = PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      return await work();
    } catch (error) {
      const left = end - performance.now();
      if (!isTaken(error) || left <= 0 || signal?.aborted === true) throw error;
      if (pause === PAUSE) process.stderr.write(`pcow: ${error.message}: waiting for it to end\n`);
      // After an abort there is one last attempt.
      await sleep(Math.min(pause, left), undefined, { signal }).catch(() => undefined);
    }
  }
}

/** The lock of an image, or the directory or mountpoint of a mount. */
function isTaken(error: unknown): error is PcowError {
  return (
    isPcowError(error, 'PCOW_LOCKED') ||
    (isPcowError(error, 'PCOW_MOUNT') && error.errnoName === 'EBUSY')
  );
}
