/**
 * Making a file that appears under its name only when it is complete, and then durably: the one way in which files of an image directory
 * are made, and the only one in which they are replaced.
 */
import { stat } from 'node:fs/promises';
import path from 'node:path';

import { identify, refuseWhereStoodOn } from './dependants.js';
import { removeRemains } from './drafts.js';
import { isPcowError, PcowError, translated } from './errors.js';
import { type FileLock, lockOf, lockStanding, lockWriter, noLock } from './file-lock.js';
import { addon } from './native.js';
import { giveName, isTaken, removeName } from './names.js';

/** How a file is made. */
export interface Making {
  /** A file of that name gives way, unless something would be lost by that: see mayBeReplaced(). Default: PCOW_EXISTS. */
  replace?: boolean | undefined;
  /** Files that the new content is read from, or stands on: they are never replaced by it. */
  sources?: readonly string[] | undefined;
}

/**
 * Calls `work` with the path of an empty file to fill, which then gets the name `target`. What it replaces is locked from before the
 * first look at it until the new file is durably in its place: no guest begins to write it meanwhile, and nobody comes to stand on it.
 */
export async function throughDraft<T>(target: string, making: Making, work: (draft: string) => Promise<T>): Promise<T> {
  let held = await holdTarget(target, making);
  await removeRemains(path.dirname(target));
  const draft = await translated(() => addon().makeDraft(target)).catch((error: unknown) => {
    held?.release();
    throw error;
  });
  const lock = lockOf(draft.lock);
  let named = false;
  try {
    const result = await work(draft.path);
    while (!named) {
      try {
        await giveName(draft.path, target, held !== null);
        named = true;
      } catch (error) {
        // It has come into being while the work was done.
        if (held !== null || making.replace !== true || !isPcowError(error, 'PCOW_EXISTS')) throw error;
        held = await holdTarget(target, making);
      }
    }
    return result;
  } catch (error) {
    // What was being made is known by the name that it was to have.
    if (error instanceof Error) error.message = error.message.replaceAll(draft.path, target);
    throw error;
  } finally {
    if (!named) await removeName(draft.path).catch(() => undefined); // the first failure is the one to tell
    lock.release();
    held?.release();
  }
}

/** Fails where a file could not be made, or replaced, now. For what is better refused before anything else is done. */
export async function mayBeReplaced(target: string, making: Making): Promise<void> {
  (await holdTarget(target, making))?.release();
}

/** Locks what is to be replaced, or says why it must stay. null: there is nothing. */
async function holdTarget(target: string, { replace = false, sources = [] }: Making): Promise<FileLock | null> {
  if (!(await isTaken(target))) return null;
  if (!replace) throw new PcowError('PCOW_EXISTS', `${target} exists already`);
  const there = await statusOf(target);
  if (there === null) return noLock; // a symbolic link that leads nowhere
  if (!there.isFile()) throw new PcowError('PCOW_INVALID', `${target} is no regular file, so it is not replaced`);
  for (const source of sources) {
    const status = await statusOf(source);
    if (status?.dev === there.dev && status.ino === there.ino) {
      throw new PcowError(
        'PCOW_INVALID',
        `${target} can't be replaced by what is read from it, which would drop its snapshots: choose another name, and rename that afterwards`,
      );
    }
  }
  const stoodOn = { file: target, what: `${target} can't be replaced` };
  const writer = await lockWriter(target).catch(async (error: unknown) => {
    if (!isPcowError(error, 'PCOW_LOCKED')) throw error;
    // What stays true when that process has ended is said first.
    if (await isImage(target)) await refuseWhereStoodOn(stoodOn);
    throw new PcowError(error.code, `${error.message}; it is not replaced`, { errno: error.errno });
  });
  try {
    if (!(await isImage(target))) return writer;
    const standing = await lockStanding(target, 'exclusive');
    const both = {
      release: () => {
        standing.release();
        writer.release();
      },
    };
    try {
      await refuseWhereStoodOn(stoodOn);
      return both;
    } catch (error) {
      standing.release();
      throw error;
    }
  } catch (error) {
    writer.release();
    throw error;
  }
}

async function statusOf(file: string) {
  return stat(file, { bigint: true }).catch(() => null);
}

/** A damaged one is one. */
async function isImage(file: string): Promise<boolean> {
  try {
    await identify(file);
    return true;
  } catch (error) {
    if (isPcowError(error, 'PCOW_NOT_AN_IMAGE')) return false;
    if (isPcowError(error, 'PCOW_CORRUPT', 'PCOW_UNSUPPORTED')) return true;
    throw error;
  }
}
