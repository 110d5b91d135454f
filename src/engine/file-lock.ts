/**
 * The locks of image files (docs/format.md, "Locking"). They are open-file-description locks, which
 * the kernel releases when their holder ends, in whatever container it runs.
 *
 * Order: first the writer's lock of an image, for which no process waits; then its standing lock;
 * then, shared, that of its base. A process that holds a standing lock never waits for a writer's
 * lock. Waiting for a standing lock has a time limit: if two processes wait for each other
 * nevertheless, because names change meanwhile, they get an error.
 */
import { setTimeout as sleep } from 'node:timers/promises';

import { isPcowError, PcowError, translated } from './errors.js';
import { addon } from './native.js';

/** As LockByte in native/engine/image/names.h. */
const WRITER = 0;
const STANDING = 1;

/** Milliseconds. */
const STANDING_LIMIT = 20_000;
const POLL = 20;

export interface FileLock {
  release(): void;
}

/** Does not lock anything. */
export const noLock: FileLock = { release: () => undefined };

/**
 * The writer's lock of an image (or of any file), without opening it as an image. The message of
 * PCOW_LOCKED names the process that has the lock. If this user may only read the file, a shared
 * lock keeps writers out.
 */
export async function lockWriter(file: string): Promise<FileLock> {
  const descriptor = await translated(() => addon().lockFile(file, WRITER, true)).catch(
    (error: unknown) => {
      if (!isPcowError(error, 'PCOW_PERMISSION', 'PCOW_READ_ONLY')) throw error;
      return translated(() => addon().lockFile(file, WRITER, false));
    },
  );
  return lockOf(descriptor);
}

/**
 * The standing lock of an image. `shared`: nothing on which other images may stand is removed
 * meanwhile, so something can be made that stands on it. `exclusive`: no image can be made to stand
 * on it meanwhile. Hold it until what was decided under it is durable.
 */
export async function lockStanding(file: string, how: 'shared' | 'exclusive'): Promise<FileLock> {
  const deadline = Date.now() + STANDING_LIMIT;
  for (;;) {
    const descriptor = await translated(() =>
      addon().lockFile(file, STANDING, how === 'exclusive'),
    );
    if (descriptor >= 0) return lockOf(descriptor);
    if (Date.now() > deadline) {
      const who =
        how === 'shared' ? 'is deleting, renaming or replacing' : 'is making, moving or deleting';
      throw new PcowError(
        'PCOW_BUSY',
        `${file}: another process ${who} ${how === 'shared' ? 'it, or a snapshot of it' : 'an image that stands on it'}: ` +
          'try again when it has finished',
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
