/** A file system that is soon full. */
import { execFile } from 'node:child_process';
import { mkdir, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

import { scratchDirectory } from './scratch.js';

const run = promisify(execFile);

/** Mounts one of `size` bytes at a directory that it makes, for one test. */
export async function mountSmallDisk(t: ExecutionContext<unknown>, directory: string, size: number): Promise<void> {
  await mkdir(directory, { recursive: true });
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'pcow-test', directory]);
  t.teardown(() => run('umount', ['-l', directory]));
}

export async function freeSpace(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}

/** Takes all of the disk but `left` bytes, by a file of its own. */
export async function fillDisk(directory: string, left: number): Promise<void> {
  await writeFile(filler(directory), Buffer.alloc((await freeSpace(directory)) - left, 1));
}

/** Gives back what fillDisk() took. */
export function freeDisk(directory: string): Promise<void> {
  return rm(filler(directory));
}

function filler(directory: string): string {
  return path.join(directory, 'filler');
}

/** A directory that takes names in capitals and small letters for one; null where there can't be one. */
export async function caseIgnoringDirectory(t: ExecutionContext<unknown>): Promise<string | null> {
  const scratch = await scratchDirectory(t);
  const [disk, point] = [path.join(scratch, 'disk'), path.join(scratch, 'mnt')];
  await mkdir(point);
  try {
    await run('truncate', ['-s', '64M', disk]);
    await run('mkfs.ext4', ['-q', '-F', '-O', 'casefold', '-E', 'encoding=utf8', disk]);
    await run('mount', ['-o', 'loop', disk, point]);
  } catch {
    return null;
  }
  t.teardown(() => run('umount', ['-l', point]));
  const directory = path.join(point, 'images');
  await mkdir(directory);
  return run('chattr', ['+F', directory]).then(
    () => directory,
    () => null,
  );
}
