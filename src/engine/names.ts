/**
 * How files of an image directory get names and lose them: the one place in src/ and cli/ where that is done. Each is durable when it
 * returns (native/engine/image/names.h): a power cut afterwards finds the file under its name, complete, or finds the name gone.
 */
import { lstat, readdir, realpath } from 'node:fs/promises';
import path from 'node:path';

import { translated } from './errors.js';
import { addon } from './native.js';

/** Gives a complete file its name. Where there is a file of that name, `replace` puts it in its place; else it is PCOW_EXISTS. */
export async function giveName(draft: string, name: string, replace: boolean): Promise<void> {
  await translated(() => addon().giveName(draft, name, replace));
}

/** A second name for a file, which may have it already; PCOW_EXISTS where another file has it. In the same file system. */
export async function addName(name: string, second: string): Promise<void> {
  await translated(() => addon().addName(name, second));
}

export async function removeName(name: string): Promise<void> {
  await translated(() => addon().removeName(name));
}

/** How two paths are related, as names: see relationOf(). */
export type Relation = 'apart' | 'one name' | 'two names';

/**
 * Whether two paths are names of one file. `one name`: a single entry of a directory, spelt in two ways (by a link to the directory, or
 * where the directory ignores case): who removes one has removed both. `two names`: two entries of one file, hard links: either can go.
 * `apart`: everything else. A symbolic link is a file of its own: what it leads to does not count.
 */
export async function relationOf(one: string, other: string): Promise<Relation> {
  const [a, b] = await Promise.all([identityOf(one), identityOf(other)]);
  if (a === null || a !== b) return 'apart';
  const [home, otherHome] = await Promise.all([realpath(path.dirname(one)), realpath(path.dirname(other))]);
  if (home !== otherHome) return 'two names';
  // A directory that ignores case finds both spellings, and lists one.
  const listed = await readdir(home);
  const names = new Set([path.basename(one), path.basename(other)]);
  return listed.filter((name) => names.has(name)).length === 2 ? 'two names' : 'one name';
}

/** Of the file itself, where it is a symbolic link. null: there is none. */
async function identityOf(file: string): Promise<string | null> {
  try {
    const { dev, ino } = await lstat(file, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/** Whether there is anything under this name, be it a symbolic link that leads nowhere. */
export async function isTaken(file: string): Promise<boolean> {
  return (await identityOf(file)) !== null;
}

/** Whether a system call failed because there is no such file. */
export function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR');
}
