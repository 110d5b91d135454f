/**
 * Asking a mount to change its images, by its control files. The mount is the one writer of everything in its
 * directory, so where there is one, this is the only way.
 *
 * A write that fails brings an errno; the sentence that goes with it is in the image's `status`.
 */
import { constants } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getSystemErrorName } from 'node:util';
import createDebug from 'debug';
import type { PcowErrorCode } from '../src/engine/errors.js';
import type { ImageState } from '../src/mount/image-entry.js';
import type { PcowMount } from '../src/mounts.js';
import { asking, mustAnswerOnTheWay } from './asking.js';
import { Failure, warn } from './errors.js';
import { type ProgressForm, withProgress } from './progress.js';
import { word } from './quote.js';

const debug = createDebug('pcow:cli:control');

export type ImageControl =
  | 'snapshot'
  | 'rollback'
  | 'rename'
  | 'delete'
  | 'clone'
  | 'remove'
  | 'resize'
  | 'rebase'
  | 'flatten'
  | 'commit'
  | 'compact'
  | 'checksums'
  | 'cancel';

/** Writes `text` to a control file of one image; returns when the mount has done it. */
export async function askImage(mount: PcowMount, image: string, control: ImageControl, text: string): Promise<void> {
  const directory = path.join(mount.mountpoint, '.pcow', image);
  await writeControl(mount, path.join(directory, control), text, `${image}: ${control} ${text}`, directory);
}

/** Milliseconds between two looks at how far the mount is. */
const LOOK = 100;

/** The same for what takes long: with its progress, and stopped by Ctrl-C. `label` names it. */
export async function askForWork(
  { mount, name }: { mount: PcowMount; name: string },
  control: ImageControl,
  text: string,
  label: string,
  form: ProgressForm | undefined,
): Promise<void> {
  const directory = path.join(mount.mountpoint, '.pcow', name);
  await mustAnswerOnTheWay(directory);
  await withProgress(label, form, async ({ signal, onProgress }) => {
    let over = false;
    let total = 0;
    const asked = askImage(mount, name, control, text).finally(() => {
      over = true;
    });
    asked.catch(() => undefined); // told below
    const look = async () => {
      const { working } = (await readStatus(directory)) ?? {};
      if (over || working?.command !== control || working.text !== text || working.total === 0) return;
      ({ total } = working);
      onProgress(working.done, total);
    };
    const cancel = () => {
      askImage(mount, name, 'cancel', `${control} ${text}`).catch((error: unknown) => {
        debug('not cancelled: %s', error);
        if (!over)
          warn('pcow', `${name}: this can't be stopped, and goes on in the mount; Ctrl-C again leaves it alone`);
      });
    };
    signal.addEventListener('abort', cancel, { once: true });
    const ended = asked.catch(() => undefined);
    let looking: Promise<void> | null = null;
    while (!over) {
      await Promise.race([ended, sleep(LOOK)]);
      // One look at a time. Whoever waits for the command notices a mount that answers no more.
      looking ??= look().finally(() => {
        looking = null;
      });
      await Promise.race([ended, looking]);
    }
    await asked;
    if (total > 0) onProgress(total, total);
  });
}

/** One cut across several images of a mount. */
export async function askForCut(mount: PcowMount, name: string, images: string[]): Promise<void> {
  const directory = path.join(mount.mountpoint, '.pcow');
  const text = [name, ...images].join(' ');
  await writeControl(mount, path.join(directory, 'snapshot'), text, `snapshot ${text}`, directory);
}

/** The sentence for an operation on a flat file that the mount has refused. */
export function explainOperation(error: unknown, mount: PcowMount, image: string, what: string): Promise<unknown> {
  return explain(error, mount, what, path.join(mount.mountpoint, '.pcow', image));
}

async function writeControl(
  mount: PcowMount,
  file: string,
  text: string,
  what: string,
  statusDirectory: string,
): Promise<void> {
  debug('write %o to %s', text, file);
  try {
    // Never O_TRUNC: the write alone is the command. One write(2): the mount takes each as a command of its own.
    await asking(mount, async () => {
      const handle = await open(file, constants.O_WRONLY);
      try {
        await handle.write(text + '\n');
      } finally {
        await handle.close();
      }
    });
  } catch (error) {
    throw await explain(error, mount, what, statusDirectory);
  }
}

/** The codes of the errnos that a mount answers with, for where its `status` does not tell the code. */
const CODE_OF_ERRNO: Record<string, PcowErrorCode> = {
  EINVAL: 'PCOW_INVALID',
  ENOTDIR: 'PCOW_NOT_FOUND',
  EEXIST: 'PCOW_EXISTS',
  ENOENT: 'PCOW_NOT_FOUND',
  EBUSY: 'PCOW_BUSY',
  EOPNOTSUPP: 'PCOW_UNSUPPORTED',
  ENOSPC: 'PCOW_NO_SPACE',
  EROFS: 'PCOW_READ_ONLY',
  EACCES: 'PCOW_PERMISSION',
  EPERM: 'PCOW_PERMISSION',
  EFBIG: 'PCOW_TOO_LARGE',
  EMLINK: 'PCOW_LIMIT',
  ENAMETOOLONG: 'PCOW_INVALID',
  ESTALE: 'PCOW_BASE_CHANGED',
  ELOOP: 'PCOW_BASE_LOOP',
  ECANCELED: 'PCOW_CANCELLED',
};

/** An image that the mount can't open has no control files but its status, which says why. */
const CODE_OF_STATE: Partial<Record<string, PcowErrorCode>> = {
  'not an image': 'PCOW_NOT_AN_IMAGE',
  damaged: 'PCOW_CORRUPT',
  unsupported: 'PCOW_UNSUPPORTED',
  'base missing': 'PCOW_BASE_MISSING',
  'base changed': 'PCOW_BASE_CHANGED',
  'base loop': 'PCOW_BASE_LOOP',
  'base outside of the directory': 'PCOW_BASE_OUTSIDE',
  'outside of the directory': 'PCOW_BASE_OUTSIDE',
  unreadable: 'PCOW_IO',
} satisfies Partial<Record<ImageState, PcowErrorCode>>;

async function explain(error: unknown, mount: PcowMount, what: string, statusDirectory: string): Promise<unknown> {
  if (error instanceof Failure || !(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') {
    return error;
  }
  const errno = getSystemErrorName(error.errno);
  const status = await asking(mount, () => readStatus(statusDirectory)).catch((failure: unknown) => {
    if (failure instanceof Failure) return failure;
    throw failure;
  });
  if (status instanceof Failure) return status;
  if (status === null) {
    const code = CODE_OF_ERRNO[errno] ?? 'PCOW_IO';
    if (code === 'PCOW_PERMISSION') {
      return new Failure(code, `this user may not ask the mount on ${mount.mountpoint} for “${what}” (${errno})`);
    }
    return new Failure(
      code,
      `the mount on ${mount.mountpoint} does not take “${what}” (${errno})`,
      `end the mount first: pcow umount ${word(mount.mountpoint)}`,
    );
  }
  const state = CODE_OF_STATE[String(status.state)];
  if (state !== undefined) {
    // Of an image that lies outside the sentence says it; the usual step is about a base that does.
    return new Failure(state, String(status.problem), status.state === 'outside of the directory' ? null : undefined);
  }
  const { lastError } = status;
  return lastError?.errno === errno
    ? new Failure(lastError.code, lastError.message)
    : new Failure(CODE_OF_ERRNO[errno] ?? 'PCOW_IO', `the mount on ${mount.mountpoint} refused “${what}” (${errno})`);
}

/** What a `status` file says, as far as it is asked here (src/mount/status.ts). */
interface Status {
  state?: string;
  problem?: string | null;
  monitors?: { problem: string | null };
  working?: { command: string; text: string; done: number; total: number } | null;
  attached?: { pid: number; command: string; monitor: { stalled?: number } | null } | null;
  lastError: { code: PcowErrorCode; errno: string; message: string } | null;
}

/** A process that writes an image through a monitor, as its mount's status says. */
export interface Attached {
  pid: number;
  command: string;
  /** It stands still: the disk has no room for what it writes, or fails. */
  stalled: boolean;
}

export async function attachedTo(mountpoint: string, name: string): Promise<Attached | null> {
  const attached = (await readStatus(path.join(mountpoint, '.pcow', name)))?.attached ?? null;
  return attached && { pid: attached.pid, command: attached.command, stalled: (attached.monitor?.stalled ?? 0) > 0 };
}

/** Why no process can attach to the images of a mount, as its status says; null where they can. */
export async function monitorsProblem(mount: PcowMount): Promise<string | null> {
  const status = await asking(mount, () => readStatus(path.join(mount.mountpoint, '.pcow')));
  return status?.monitors?.problem ?? null;
}

/** null where an image has no control files: its name is that of a control file. */
async function readStatus(directory: string): Promise<Status | null> {
  try {
    return JSON.parse(await readFile(path.join(directory, 'status'), 'utf8')) as Status;
  } catch (error) {
    // The errno of the command alone must do then, and it is at hand.
    debug('no status in %s: %s', directory, error);
    return null;
  }
}
