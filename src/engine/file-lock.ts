/**
 * The locks of image files (docs/format.md, "Locking"): open-file-description locks, which the kernel lets go when their holder ends,
 * in whatever container it runs.
 *
 * Order: the writer's lock of an image first, which nobody waits for; then its standing lock; then, shared, that of its base. Nobody who
 * holds a standing lock waits for a writer's lock. A standing lock is waited for with a limit, so that two who come to wait
 * for each other all the same, by names that change meanwhile, get an error.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { isPcowError, PcowError, translated } from './errors.js';
import { addon } from './native.js';

/** As LockByte of native/engine/image/names.h. */
const WRITER = 0;
const STANDING = 1;

/** Milliseconds. */
const STANDING_LIMIT = 20_000;
const POLL = 20;

export interface FileLock {
  release(): void;
}

/** A lock that is none. */
export const noLock: FileLock = { release: () => undefined };

/**
 * The writer's lock of an image (or of any file), without opening it as an image. PCOW_LOCKED names who has it. A file that this user
 * may only read is locked against writers, too.
 */
export async function lockWriter(file: string): Promise<FileLock> {
  const descriptor = await translated(() => addon().lockFile(file, WRITER, true)).catch((error: unknown) => {
    if (!isPcowError(error, 'PCOW_PERMISSION', 'PCOW_READ_ONLY')) throw error;
    return translated(() => addon().lockFile(file, WRITER, false));
  });
  return lockOf(descriptor);
}

/**
 * The standing lock of an image. `shared`: nothing that others stand on is taken away meanwhile, so something can be made that stands on
 * it. `exclusive`: nobody comes to stand on it meanwhile. Held until what was decided under it is durable.
 */
export async function lockStanding(file: string, how: 'shared' | 'exclusive'): Promise<FileLock> {
  const deadline = Date.now() + STANDING_LIMIT;
  for (;;) {
    const descriptor = await translated(() => addon().lockFile(file, STANDING, how === 'exclusive'));
    if (descriptor >= 0) return lockOf(descriptor);
    if (Date.now() > deadline) {
      const who = how === 'shared' ? 'deletes, renames or replaces' : 'makes, moves or deletes';
      throw new PcowError(
        'PCOW_BUSY',
        `${file}: another process just ${who} ${how === 'shared' ? 'it, or a snapshot of it' : 'something that stands on it'}: ` +
          'try again when that has ended',
      );
    }
    await sleep(POLL);
  }
}

/** Runs work that makes or moves something that stands on the image `base`. */
export async function standingOn<T>(base: string, work: () => Promise<T>): Promise<T> {
  const lock = await lockStanding(base, 'shared');
  try {
    return await work();
  } finally {
    lock.release();
  }
}

export function lockOf(descriptor: number): FileLock {
  let held = true;
  return {
    release: () => {
      if (held) addon().unlockFile(descriptor);
      held = false;
    },
  };
}
