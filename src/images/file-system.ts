/** The filesystem of a directory, and what it cannot guarantee for images. */
import { mountTable, type MountTableEntry } from './mount-table.js';

/**
 * Filesystems that write to another place on every overwrite: the space that a block has is not the
 * space that the next write needs.
 */
const ELSEWHERE = /^(btrfs|bcachefs|zfs|nilfs2)$/;

/** `directory` is a real path. */
export async function fileSystemOf(directory: string): Promise<MountTableEntry | undefined> {
  const around = (await mountTable()).filter(
    ({ mountpoint }) =>
      mountpoint === '/' || directory === mountpoint || directory.startsWith(`${mountpoint}/`),
  );
  const longest = Math.max(...around.map(({ mountpoint }) => mountpoint.length));
  return around.findLast(({ mountpoint }) => mountpoint.length === longest);
}

/** The special effect of a full disk on this filesystem; null: none. */
export function overwritingProblem(type: string): string | null {
  return ELSEWHERE.test(type)
    ? `${type} needs new space for every overwrite: if the disk is full, a guest that stores to its memory may get SIGBUS`
    : null;
}
