/** Making a file that appears under its name only when it is complete. */
import { link, open, rename, unlink } from 'node:fs/promises';
import path from 'node:path';
import { draftOf, exists, removeRemains } from '../src/drafts.js';
import { Failure } from './errors.js';

/** Calls `work` with the path of a file to make, which then gets the name `target`. Existing ones only give way with `force`. */
export async function throughDraft<T>(target: string, force: boolean, work: (draft: string) => Promise<T>): Promise<T> {
  if (!force && (await exists(target))) throw existsAlready(target);
  await removeRemains(path.dirname(target));
  const draft = draftOf(target);
  try {
    const result = await work(draft);
    if (force) await rename(draft, target);
    else await giveName(draft, target);
    return result;
  } catch (error) {
    throw draftFailure(error, target);
  } finally {
    await unlink(draft).catch(() => undefined); // it has its name, or was never made
  }
}

/** Never replaces a file. */
async function giveName(draft: string, target: string): Promise<void> {
  try {
    await link(draft, target);
  } catch (error) {
    if (codeOf(error) !== 'EPERM' && codeOf(error) !== 'EOPNOTSUPP') throw error;
    // A file system without hard links: an empty file takes the name first.
    await (await open(target, 'wx')).close();
    await rename(draft, target);
  }
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined;
}

function existsAlready(target: string): Failure {
  return new Failure('PCOW_EXISTS', `${target} exists already`, 'choose another name, or replace it with --force');
}

function draftFailure(error: unknown, target: string): unknown {
  switch (codeOf(error)) {
    case 'EEXIST':
      return existsAlready(target);
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
