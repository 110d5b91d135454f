/** Work that may succeed at another time: tried again, with growing pauses. */
import { setTimeout as sleep } from 'node:timers/promises';
import createDebug from 'debug';
import type { PcowError } from '../engine/index.js';
import { cancelled } from './store.js';

const debug = createDebug('pcow:registry');

/**
 * Milliseconds for which a server may be silent, or ask to wait before the next try. The variable,
 * in seconds, is for tests, and for slow registries.
 */
export const PATIENCE = (Number(process.env.PCOW_REGISTRY_LIMIT ?? '') || 60) * 1000;
const TRIES = 6;
/** Milliseconds before the second try; doubled before each further one. */
const PAUSE = 200;

/** A failure that may pass. */
export class Temporary extends Error {
  /** `pause`: milliseconds for which the other side asks to wait. */
  constructor(
    readonly failure: PcowError,
    readonly pause = 0,
  ) {
    super(failure.message);
  }
}

/** For untilDone(). */
export interface Trying {
  signal?: AbortSignal | undefined;
  /** Called after each try that failed and is followed by another one. */
  onFailure?: ((failure: PcowError) => void) | undefined;
}

/** Runs `work`, again if it fails with Temporary. The last such failure is thrown. */
export async function untilDone<T>(
  { signal, onFailure }: Trying,
  work: () => Promise<T>,
): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await work();
    } catch (error) {
      if (signal?.aborted) throw cancelled('the transfer', signal);
      if (!(error instanceof Temporary)) throw error;
      debug('try %d: %s', tried, error.message);
      if (tried === TRIES || error.pause > PATIENCE) throw error.failure;
      onFailure?.(error.failure);
      const pause = Math.min(PATIENCE, PAUSE * 2 ** tried) * (0.5 + Math.random());
      await sleep(Math.max(pause, error.pause), undefined, { signal }).catch(() => {
        throw cancelled('the transfer', signal!);
      });
    }
  }
}

/** Milliseconds of a Retry-After header: seconds, or a date. 0 if there is no valid one. */
export function pauseTold(header: string | string[] | undefined): number {
  if (typeof header !== 'string') return 0;
  const seconds = /^\d{1,9}$/.test(header) ? Number(header) : NaN;
  const told = Number.isNaN(seconds) ? Date.parse(header) - Date.now() : seconds * 1000;
  return Number.isNaN(told) ? 0 : Math.max(0, told);
}
