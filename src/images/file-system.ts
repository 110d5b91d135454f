/** The file system that a directory is on, and what it cannot promise to images. */
import { mountTable, type MountTableEntry } from './mount-table.js';

/** Kinds that write elsewhere on every overwrite, so that space which a block has is not the space that it needs next. */
const ELSEWHERE = /^(btrfs|bcachefs|zfs|nilfs2)$/;

/** `directory` is a real path. */
export async function fileSystemOf(directory: string): Promise<MountTableEntry | undefined> {
  const around = (await mountTable()).filter(
    ({ mountpoint }) => mountpoint === '/' || directory === mountpoint || directory.startsWith(`${mountpoint}/`),
  );
  const longest = Math.max(...around.map(({ mountpoint }) => mountpoint.length));
  return around.findLast(({ mountpoint }) => mountpoint.length === longest);
}

/** What a full disk does there that it does nowhere else; null: nothing. */
export function overwritingProblem(type: string): string | null {
  return ELSEWHERE.test(type)
    ? `${type} writes elsewhere on every overwrite: where the disk is full, a guest that stores to its memory may end in SIGBUS`
    : null;
}
