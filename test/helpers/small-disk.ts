/** A file system that is soon full. */
import { execFile } from 'node:child_process';
import { mkdir, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

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
