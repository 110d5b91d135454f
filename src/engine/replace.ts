/**
 * Makes a file that gets its name only when it is complete, and then durably. All files of an image
 * directory are made this way, and replaced only this way.
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
  /**
   * Replaces a file with that name, unless data would be lost: see mayBeReplaced(). Default:
   * PCOW_EXISTS.
   */
  replace?: boolean | undefined;
  /** Files from which the new content is read, or on which it stands: these are never replaced. */
  sources?: readonly string[] | undefined;
}

/**
 * Calls `work` with the path of an empty file to fill, which then gets the name `target`. A file
 * that is replaced is locked from before it is first examined until the new file has durably
 * replaced it: meanwhile no guest can begin to write it, and no image can be made to stand on it.
 */
export async function throughDraft<T>(
  target: string,
  making: Making,
  work: (draft: string) => Promise<T>,
): Promise<T> {
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
        // A file with that name was made during the work.
        if (held !== null || making.replace !== true || !isPcowError(error, 'PCOW_EXISTS'))
          throw error;
        held = await holdTarget(target, making);
      }
    }
    return result;
  } catch (error) {
    // For the user, the file has the name that it was to get.
    if (error instanceof Error) error.message = error.message.replaceAll(draft.path, target);
    throw error;
  } finally {
    // the first error is the one to report
    if (!named) await removeName(draft.path).catch(() => undefined);
    lock.release();
    held?.release();
  }
}

/**
 * Fails if a file could not be made, or replaced, now. For operations that should be refused before
 * they do anything else.
 */
export async function mayBeReplaced(target: string, making: Making): Promise<void> {
  (await holdTarget(target, making))?.release();
}

/** Locks the file to be replaced, or says why it must stay. null: there is no file. */
async function holdTarget(
  target: string,
  { replace = false, sources = [] }: Making,
): Promise<FileLock | null> {
  if (!(await isTaken(target))) return null;
  if (!replace) throw new PcowError('PCOW_EXISTS', `${target} exists already`);
  const there = await statusOf(target);
  if (there === null) return noLock; // a symbolic link without a target
  if (!there.isFile())
    throw new PcowError('PCOW_INVALID', `${target} is not a regular file, so it is not replaced`);
  for (const source of sources) {
    const status = await statusOf(source);
    if (status?.dev === there.dev && status.ino === there.ino) {
      throw new PcowError(
        'PCOW_INVALID',
        `${target} can't be replaced by its own content, because that would drop its snapshots: choose another name, and rename the new file afterwards`,
      );
    }
  }
  const stoodOn = { file: target, what: `${target} can't be replaced` };
  const writer = await lockWriter(target).catch(async (error: unknown) => {
    if (!isPcowError(error, 'PCOW_LOCKED')) throw error;
    // First report the obstacle that remains when that process has ended.
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

/** A damaged image counts as an image. */
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
