/** What the filesystem of a directory supports, and which files are in persistent memory. */
import { translated } from './errors.js';
import { addon } from './native.js';

/**
 * Fails with PCOW_UNSUPPORTED if the filesystem lacks something that images need
 * (docs/filesystems.md). Tries it with a file of its own, and so also fails if no file can be made
 * there.
 */
export function checkPlace(directory: string): Promise<void> {
  return translated(() => addon().checkDirectory(directory));
}

/** Whether the writer of this image file will store into persistent memory (docs/durability.md). */
export function isInPersistentMemory(file: string): Promise<boolean> {
  return translated(() => addon().isPersistent(file));
}
