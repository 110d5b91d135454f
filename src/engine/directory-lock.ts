/**
 * The lock of an image directory: at most one mount serves the directory. The kernel releases the
 * lock when the process ends.
 */
import { translatedNow } from './errors.js';
import { addon } from './native.js';
import { checkPath } from './validate.js';

export interface DirectoryLock {
  release(): void;
}

/** Takes the lock, or throws PCOW_LOCKED at once if a mount has it. */
export function lockDirectory(directory: string): DirectoryLock {
  checkPath('the image directory', directory);
  const lock = translatedNow(() => addon().lockDirectory(directory));
  return {
    release: () => {
      addon().unlockDirectory(lock);
    },
  };
}
