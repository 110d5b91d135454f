/** A file appears under its name only when it is complete: until then it is a hidden one beside it. */
import { link, readdir, rename, unlink } from 'node:fs/promises';
import path from 'node:path';
import { Failure } from './errors.js';

/** Calls `work` with the path of a file to make, which then gets the name `target`. Existing ones only give way with `force`. */
export async function throughDraft<T>(target: string, force: boolean, work: (draft: string) => Promise<T>): Promise<T> {
  await removeStale(target);
  const draft = path.join(path.dirname(target), `.${path.basename(target)}.${process.pid}.convert`);
  try {
    const result = await work(draft);
    // link(2) never replaces; rename(2) does.
    if (force) await rename(draft, target);
    else await link(draft, target);
    return result;
  } catch (error) {
    throw draftFailure(error, target);
  } finally {
    await unlink(draft).catch(() => undefined); // it has its name, or was never made
  }
}

function draftFailure(error: unknown, target: string): unknown {
  switch (error instanceof Error && 'code' in error ? error.code : undefined) {
    case 'EEXIST':
      return new Failure('PCOW_EXISTS', `${target} exists already`, 'choose another name, or replace it with --force');
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new Failure(
        'PCOW_PERMISSION',
        `${target} can't be made: its directory may not be written by this user`,
        'choose another directory, or the user who owns it',
      );
    case 'ENOSPC':
      return new Failure(
        'PCOW_NO_SPACE',
        `${target}: no space left on its file system`,
        'free space there, or choose another directory',
      );
    default:
      return error;
  }
}

/** What commands that were killed have left behind. */
async function removeStale(target: string): Promise<void> {
  const prefix = `.${path.basename(target)}.`;
  for (const name of await readdir(path.dirname(target))) {
    const [, pid] = name.startsWith(prefix) ? (/^(\d+)\.convert(?:\.raw)?$/.exec(name.slice(prefix.length)) ?? []) : [];
    if (pid !== undefined && !isAlive(Number(pid))) await unlink(path.join(path.dirname(target), name));
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
