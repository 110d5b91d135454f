/** `--wait`: until whoever has an image open for writing, or has a directory mounted, has let go of it; else a command fails at once. */
import { setTimeout as sleep } from 'node:timers/promises';
import { InvalidArgumentError, Option } from 'commander';
import { isPcowError, type PcowError } from '../src/engine/errors.js';

/** Milliseconds between two tries: the first pause, and the longest. A try may be a process of its own (mount). */
const PAUSE = 100;
const LONGEST_PAUSE = 1000;

/** For every command that changes an image, and for mount. `whom`: what is waited for. */
export function waitOption(whom = 'a process that has the image open for writing'): Option {
  return new Option('--wait <seconds>', `wait this long for ${whom}; default: fail at once`).argParser(parseSeconds);
}

function parseSeconds(text: string): number {
  if (!/^\d{1,6}(\.\d+)?$/.test(text)) throw new InvalidArgumentError('it must be a number of seconds.');
  return Number(text);
}

/**
 * Does `work` again while somebody has the image, until `seconds` are over. What fails so must have changed nothing. Work that is a part of
 * what withProgress() runs passes its `signal` on, which ends the wait.
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
      if (pause === PAUSE) process.stderr.write(`pcow: ${error.message}: waiting for its end\n`);
      // Aborted, it tries a last time.
      await sleep(Math.min(pause, left), undefined, { signal }).catch(() => undefined);
    }
  }
}

/** Of an image its lock, of a mount the directory or the mountpoint. */
function isTaken(error: unknown): error is PcowError {
  return isPcowError(error, 'PCOW_LOCKED') || (isPcowError(error, 'PCOW_MOUNT') && error.errnoName === 'EBUSY');
}
