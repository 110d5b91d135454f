/** Filesystems of a test's own: quickly full, or of a certain type. */
import { execFile } from 'node:child_process';
import { mkdir, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

import type { ExecutionContext } from 'ava';

import { scratchDirectory } from './scratch.js';

const run = promisify(execFile);

export interface Disk {
  directory: string;
  /** Name of its block device, as in /sys/block. */
  device: string;
}

/**
 * Makes a filesystem of `size` bytes on a loop device, and mounts it below `scratch`, for one test.
 */
export async function mountDisk(
  t: ExecutionContext<unknown>,
  scratch: string,
  type: 'ext2' | 'ext4' | 'xfs',
  size: number,
): Promise<Disk> {
  const [file, directory] = [path.join(scratch, 'disk'), path.join(scratch, 'mnt')];
  await mkdir(directory);
  await run('truncate', ['-s', String(size), file]);
  await run(`mkfs.${type}`, ['-q', file]);
  t.teardown(() => run('umount', ['-l', directory]).catch(() => undefined));
  await run('mount', ['-o', 'loop', file, directory]);
  const { stdout } = await run('findmnt', ['-n', '-o', 'SOURCE', directory]);
  return { directory, device: path.basename(stdout.trim()) };
}

/**
 * Bytes that have been written to the device since it was made: the seventh number of
 * /sys/block/…/stat counts 512 bytes each.
 */
export async function bytesWrittenTo({ device }: Disk): Promise<number> {
  const text = await readFile(`/sys/block/${device}/stat`, 'utf8');
  return Number(text.trim().split(/\s+/)[6]) * 512;
}

/** Mounts a tmpfs of `size` bytes at a directory that it makes, for one test. */
export async function mountSmallDisk(
  t: ExecutionContext<unknown>,
  directory: string,
  size: number,
): Promise<void> {
  await mkdir(directory, { recursive: true });
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'pcow-test', directory]);
  t.teardown(() => run('umount', ['-l', directory]));
}

export async function freeSpace(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}

/** Fills the disk except for `left` bytes, with a file of its own. */
export async function fillDisk(directory: string, left: number): Promise<void> {
  await writeFile(filler(directory), Buffer.alloc((await freeSpace(directory)) - left, 1));
}

/** Frees the space that fillDisk() took. */
export function freeDisk(directory: string): Promise<void> {
  return rm(filler(directory));
}

function filler(directory: string): string {
  return path.join(directory, 'filler');
}

/** A directory that ignores case; null if there is none. */
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
