/**
 * Asking a mount to change its images, by its control files (docs/control-files.md). The mount is the one writer of everything in its
 * directory, so where there is one, this is the only way. Nobody waits for ever for a mount that has died, is stopped or hangs.
 *
 * A write that fails brings an errno; the control file tells the sentence that goes with it where it is read through the same descriptor.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, readFile, rename } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getSystemErrorName } from 'node:util';
import createDebug from 'debug';
import { lifeOf, type Trouble, troubleOf, withMount } from '../images/mount-life.js';
import { systemCodeOf } from '../engine/errors.js';
import { isPcowError, type LongOptions, PcowError, type PcowErrorCode } from '../engine/index.js';
import type { ImageControl } from '../images/control-names.js';
import { codeOfState } from '../images/image-states.js';
import type { PcowMount } from '../images/mount-table.js';
import { word } from '../engine/shell-word.js';

const debug = createDebug('pcow:client');

/** Bytes that a control file may say of a failure. */
const MOST_SAID = 64 << 10;

/** Milliseconds between two looks at how far the mount is. */
const LOOK = 100;

/** Called once, where the mount takes its time to answer. */
export type OnWait = (mount: PcowMount) => void;

/** Why something has failed, as a mount tells it. */
export interface ToldError {
  /** As Date reads it. */
  time: string;
  /** The control file; "mv", "rm", "open", "truncate", "attach"; null: a read, write or sync of the flat file. */
  command: string | null;
  /** As that of a PcowError. */
  code: PcowErrorCode;
  /** Its name, for example "EBUSY". */
  errno: string;
  /** A sentence. */
  message: string;
}

/** What `.pcow/NAME/status` says, as far as it is the same for every image; docs/control-files.md has all of it. */
export interface MountedStatus {
  /** "ok", or what is wrong with the image. */
  state: string;
  /** A sentence, where the state is not "ok". */
  problem: string | null;
  /** What the mount is doing to the image at somebody's request. */
  working?: {
    /** The control file. */
    command: string;
    /** What was written to it. */
    text: string;
    /** Bytes. */
    done: number;
    /** Bytes; 0 until it is known. */
    total: number;
  } | null;
  /** Of the last command, read or write that failed. */
  lastError: ToldError | null;
  /** The rest. */
  [field: string]: unknown;
}

/** Of a mount, or of one of its images. */
export function controlDirectory({ mountpoint }: Pick<PcowMount, 'mountpoint'>, image?: string): string {
  return path.join(mountpoint, '.pcow', ...(image === undefined ? [] : [image]));
}

/** Does what asks a mount; fails with PCOW_MOUNT where that does not answer. */
export function asking<T>(mount: PcowMount, work: () => Promise<T>, onWait?: OnWait): Promise<T> {
  return withMount(mount, { onWait: onWait && (() => onWait(mount)) }, noAnswer, work);
}

/** Fails with PCOW_MOUNT where a mount does not answer. */
export async function mustAnswer(mount: PcowMount): Promise<void> {
  const trouble = troubleOf(mount, await lifeOf(mount));
  if (trouble !== null) throw noAnswer(trouble);
}

function noAnswer({ message, cure }: Trouble): PcowError {
  return new PcowError('PCOW_MOUNT', message, { next: cure });
}

/** Writes `text` to a control file of one image; returns when the mount has done it. */
export async function askImage(
  mount: PcowMount,
  image: string,
  control: ImageControl,
  text: string,
  onWait?: OnWait,
): Promise<void> {
  const directory = controlDirectory(mount, image);
  await writeControl(mount, directory, control, text, `${image}: ${control} ${text}`, onWait);
}

/** One cut across several images of a mount. */
export async function askForCut(mount: PcowMount, name: string, images: string[], onWait?: OnWait): Promise<void> {
  const text = [name, ...images].join(' ');
  await writeControl(mount, controlDirectory(mount), 'snapshot', text, `snapshot ${text}`, onWait);
}

/** Gives an image another name. This is a rename(2), which has no descriptor to tell its reason: `status` does. */
export async function askForRename(mount: PcowMount, image: string, newName: string, onWait?: OnWait): Promise<void> {
  const tried = { command: 'mv', since: new Date() };
  try {
    await asking(mount, () => rename(path.join(mount.mountpoint, image), path.join(mount.mountpoint, newName)), onWait);
  } catch (error) {
    throw await explained(error, mount, `mv ${image} ${newName}`, controlDirectory(mount, image), tried, onWait);
  }
}

/** What askForWork() takes. */
export interface WorkOptions extends LongOptions {
  onWait?: OnWait | undefined;
  /** Called where the work was to be stopped and can't be: it goes on in the mount. */
  onGoesOn?: (() => void) | undefined;
}

/** As askImage(), for what takes long: `onProgress` is called where the mount tells how far it is, and `signal` stops the work in the mount. */
export async function askForWork(
  mount: PcowMount,
  image: string,
  control: ImageControl,
  text: string,
  { signal, onProgress, onWait, onGoesOn }: WorkOptions = {},
): Promise<void> {
  if (signal?.aborted) {
    throw new PcowError('PCOW_CANCELLED', `${image}: ${control} was stopped before it began`, { cause: signal.reason });
  }
  let over = false;
  let total = 0;
  const asked = askImage(mount, image, control, text, onWait).finally(() => {
    over = true;
  });
  const ended = asked.catch(() => undefined); // told below
  const look = async () => {
    const { working } = (await statusIn(controlDirectory(mount, image))) ?? {};
    if (over || working?.command !== control || working.text !== text || working.total === 0) return;
    ({ total } = working);
    onProgress?.(working.done, total);
  };
  const cancel = () => {
    askImage(mount, image, 'cancel', `${control} ${text}`).catch((error: unknown) => {
      debug('not cancelled: %s', error);
      if (!over) onGoesOn?.();
    });
  };
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    let looking: Promise<void> | null = null;
    while (!over && onProgress !== undefined) {
      await Promise.race([ended, sleep(LOOK)]);
      // One look at a time. Whoever waits for the command notices a mount that answers no more.
      looking ??= look().finally(() => {
        looking = null;
      });
      await Promise.race([ended, looking]);
    }
    await asked;
    if (total > 0) onProgress?.(total, total);
  } catch (error) {
    throw signal?.aborted && isPcowError(error, 'PCOW_CANCELLED')
      ? new PcowError(error.code, error.message, { cause: signal.reason })
      : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}

async function writeControl(
  mount: PcowMount,
  directory: string,
  control: string,
  text: string,
  what: string,
  onWait?: OnWait,
): Promise<void> {
  debug('write %o to %s of %s', text, control, directory);
  try {
    await asking(mount, () => writeOnce(path.join(directory, control), `${text}\n`), onWait);
  } catch (error) {
    throw await explained(error, mount, what, directory, null, onWait);
  }
}

/** Never O_TRUNC: the write alone is the command. One write(2): the mount takes each as a command of its own. */
async function writeOnce(file: string, text: string): Promise<void> {
  const handle = await openControl(file);
  try {
    await handle.write(text);
  } catch (error) {
    throw (await failureOn(handle, error)) ?? error;
  } finally {
    await handle.close();
  }
}

/** To read as well, for the sentence of a failure; only to write for who may not read the image. */
async function openControl(file: string): Promise<FileHandle> {
  try {
    return await open(file, constants.O_RDWR);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EACCES') return open(file, constants.O_WRONLY);
    throw error;
  }
}

/** What a control file says of the write through this descriptor that has just failed; null where it tells nothing. */
async function failureOn(handle: FileHandle, cause: unknown): Promise<PcowError | null> {
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(MOST_SAID), 0, MOST_SAID, 0);
    const { code, message } = JSON.parse(buffer.toString('utf8', 0, bytesRead)) as ToldError;
    return new PcowError(code, message, { cause });
  } catch (error) {
    // It may not be read, or belongs to a mount that was begun by an older version.
    debug('no reason: %s', error);
    return null;
  }
}

/** The codes of the errnos that a mount answers with, where they are others than those of the system. */
const CODE_OF_ANSWER: Partial<Record<string, PcowErrorCode>> = {
  EINVAL: 'PCOW_INVALID',
  EBUSY: 'PCOW_BUSY',
  EMLINK: 'PCOW_LIMIT',
  ESTALE: 'PCOW_BASE_CHANGED',
  ELOOP: 'PCOW_BASE_LOOP',
  ECANCELED: 'PCOW_CANCELLED',
};

/** What has failed, so that its sentence is found in a `status`. */
interface Tried {
  /** As `lastError` has it. */
  command: string;
  /** Before it was tried. */
  since: Date;
}

/**
 * The error for an operation that the mount has refused; `directory`: the control directory that has the `status`. `tried`: what its
 * `lastError` may be about; null: nothing of it is meant for the caller.
 */
async function explained(
  error: unknown,
  mount: PcowMount,
  what: string,
  directory: string,
  tried: Tried | null,
  onWait?: OnWait,
): Promise<unknown> {
  if (isPcowError(error) || !(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') {
    return error;
  }
  const name = getSystemErrorName(error.errno);
  const code = CODE_OF_ANSWER[name] ?? systemCodeOf(-error.errno);
  const known = { errno: -error.errno, cause: error };
  const status = await asking(mount, () => statusIn(directory), onWait).catch((failure: unknown) => {
    if (isPcowError(failure)) return failure;
    throw failure;
  });
  if (isPcowError(status)) return status;
  if (status === null) {
    return code === 'PCOW_PERMISSION'
      ? new PcowError(code, `this user may not ask the mount on ${mount.mountpoint} for “${what}” (${name})`, known)
      : new PcowError(code, `the mount on ${mount.mountpoint} does not take “${what}” (${name})`, {
          ...known,
          next: `end the mount first: pcow umount ${word(mount.mountpoint)}`,
        });
  }
  // An image that the mount can't open has no control files but its status, which says why.
  const state = codeOfState(status.state);
  if (state !== null) {
    // Of an image that lies outside the sentence says it; the usual step is about a base that does.
    const next = status.state === 'outside of the directory' ? null : undefined;
    return new PcowError(state, String(status.problem), { cause: error, next });
  }
  const { lastError } = status;
  const meant =
    tried !== null &&
    lastError?.command === tried.command &&
    new Date(lastError.time).getTime() >= tried.since.getTime();
  return meant && lastError.errno === name
    ? new PcowError(lastError.code, lastError.message, { cause: error })
    : new PcowError(code, `the mount on ${mount.mountpoint} refused “${what}” (${name})`, known);
}

/** null where an image has no control files: its name is that of a control file. */
export async function statusIn(directory: string): Promise<MountedStatus | null> {
  try {
    return JSON.parse(await readFile(path.join(directory, 'status'), 'utf8')) as MountedStatus;
  } catch (error) {
    // The errno of the command alone must do then, and it is at hand.
    debug('no status in %s: %s', directory, error);
    return null;
  }
}
