/**
 * Asking a mount to change its images, by its control files (docs/control-files.md). The mount is the one writer of everything in its
 * directory, so where there is one, this is the only way. Nobody waits for ever for a mount that has died, is stopped or hangs.
 *
 * A write that fails brings an errno; the control file tells the sentence that goes with it where it is read through the same descriptor.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getSystemErrorName } from 'node:util';
import createDebug from 'debug';
import { asking, type AskOptions, mustAnswerOnTheWay } from '../images/mount-answers.js';
import { codeOfAnswer } from '../engine/errors.js';
import { isPcowError, type LongOptions, PcowError } from '../engine/index.js';
import type { ImageControl } from '../images/control-names.js';
import { codeOfState } from '../images/image-states.js';
import type { PcowMount } from '../images/mount-table.js';
import { word } from '../engine/quote.js';
import { controlDirectory, statusIn, type ToldError } from './mount-status.js';

const debug = createDebug('pcow:client');

/** Bytes that a control file may say of a failure. */
const MOST_SAID = 64 << 10;

/** Milliseconds between two looks at how far the mount is. */
const LOOK = 100;

/** Writes `text` to a control file of one image; returns when the mount has done it. */
export async function askImage(
  mount: PcowMount,
  image: string,
  control: ImageControl,
  text: string,
  options: AskOptions = {},
): Promise<void> {
  const directory = controlDirectory(mount, image);
  await writeControl(mount, directory, control, text, `${image}: ${control} ${text}`, options);
}

/** One cut across several images of a mount. */
export async function askForCut(
  mount: PcowMount,
  name: string,
  images: string[],
  options: AskOptions = {},
): Promise<void> {
  const text = [name, ...images].join(' ');
  await writeControl(mount, controlDirectory(mount), 'snapshot', text, `snapshot ${text}`, options);
}

/** Gives an image another name. This is a rename(2), which has no descriptor to tell its reason: `status` does. */
export async function askForRename(
  mount: PcowMount,
  image: string,
  newName: string,
  options: AskOptions = {},
): Promise<void> {
  const tried = { command: 'mv', since: new Date() };
  try {
    await asking(
      mount,
      () => rename(path.join(mount.mountpoint, image), path.join(mount.mountpoint, newName)),
      options,
    );
  } catch (error) {
    throw await explained(error, mount, `mv ${image} ${newName}`, controlDirectory(mount, image), tried, options);
  }
}

/** What askForWork() takes. */
export interface WorkOptions extends LongOptions, AskOptions {
  /** Called with the name of the image where the work was to be stopped and can't be: it goes on in the mount. */
  onGoesOn?: ((image: string) => void) | undefined;
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
  await mustAnswerOnTheWay(controlDirectory(mount, image), { onWait });
  let over = false;
  let total = 0;
  const asked = askImage(mount, image, control, text, { onWait }).finally(() => {
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
      if (!over) onGoesOn?.(image);
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
  options: AskOptions,
): Promise<void> {
  debug('write %o to %s of %s', text, control, directory);
  try {
    await asking(mount, () => writeOnce(path.join(directory, control), `${text}\n`), options);
  } catch (error) {
    throw await explained(error, mount, what, directory, null, options);
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
  options: AskOptions,
): Promise<unknown> {
  if (isPcowError(error) || !(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') {
    return error;
  }
  const name = getSystemErrorName(error.errno);
  const code = codeOfAnswer(-error.errno);
  const known = { errno: -error.errno, cause: error };
  const status = await asking(mount, () => statusIn(directory), options).catch((failure: unknown) => {
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
