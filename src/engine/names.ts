/**
 * How files of an image directory get and lose names: src/ and cli/ do it only here. Each change is
 * durable when the promise resolves (native/engine/image/names.h): after a later power cut the file
 * has its name and is complete, or the name is gone.
 */
import { lstat, readdir, realpath } from 'node:fs/promises';
import path from 'node:path';

import { translated } from './errors.js';
import { addon } from './native.js';

/**
 * Gives a complete file its name. If there is a file with that name, `replace` replaces it;
 * otherwise the call fails with PCOW_EXISTS.
 */
export async function giveName(draft: string, name: string, replace: boolean): Promise<void> {
  await translated(() => addon().giveName(draft, name, replace));
}

/**
 * Gives a file a second name in the same filesystem. It may have that name already; PCOW_EXISTS if
 * another file has it.
 */
export async function addName(name: string, second: string): Promise<void> {
  await translated(() => addon().addName(name, second));
}

export async function removeName(name: string): Promise<void> {
  await translated(() => addon().removeName(name));
}

/** The relation of two paths, as names: see relationOf(). */
export type Relation = 'apart' | 'one name' | 'two names';

/**
 * Whether two paths are names of one file. `one name`: one directory entry, written in two ways
 * (through a link to the directory, or if the directory ignores case); removing one removes both.
 * `two names`: two entries of one file, hard links; each can be removed. `apart`: everything else.
 * A symbolic link is a file of its own: its target does not count.
 */
export async function relationOf(one: string, other: string): Promise<Relation> {
  const [a, b] = await Promise.all([identityOf(one), identityOf(other)]);
  if (a === null || a !== b) return 'apart';
  const [home, otherHome] = await Promise.all([
    realpath(path.dirname(one)),
    realpath(path.dirname(other)),
  ]);
  if (home !== otherHome) return 'two names';
  // A directory that ignores case finds both spellings, but lists one.
  const listed = await readdir(home);
  const names = new Set([path.basename(one), path.basename(other)]);
  return listed.filter((name) => names.has(name)).length === 2 ? 'two names' : 'one name';
}

/** Of a symbolic link itself, not of its target. null if there is no file. */
async function identityOf(file: string): Promise<string | null> {
  try {
    const { dev, ino } = await lstat(file, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/** Whether the name exists, even as a symbolic link without a target. */
export async function isTaken(file: string): Promise<boolean> {
  return (await identityOf(file)) !== null;
}

/** Whether a system call failed because there is no such file. */
export function isMissing(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    (error.code === 'ENOENT' || error.code === 'ENOTDIR')
  );
}
