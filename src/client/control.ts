/**
 * Asks a mount to change its images, through its control files (docs/control-files.md). The mount
 * is the only writer in its directory, so if there is one, this is the only way. No call waits
 * forever for a mount that has died, is stopped or hangs.
 *
 * A write that fails returns an errno. The message can be read from the control file through the
 * same descriptor.
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

/** The most bytes that a control file's error may have. */
const MOST_SAID = 64 << 10;

/** Milliseconds between two checks of the mount's progress. */
const LOOK = 100;

/** Writes `text` to a control file of one image. Returns when the mount has done the command. */
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

/** Takes one cut across several images of a mount. */
export async function askForCut(
  mount: PcowMount,
  name: string,
  images: string[],
  options: AskOptions = {},
): Promise<void> {
  const text = [name, ...images].join(' ');
  await writeControl(mount, controlDirectory(mount), 'snapshot', text, `snapshot ${text}`, options);
}

/**
 * Renames an image. This is a rename(2), which has no descriptor from which the error could be
 * read: `status` has it.
 */
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
    throw await explained(
      error,
      mount,
      `mv ${image} ${newName}`,
      controlDirectory(mount, image),
      tried,
      options,
    );
  }
}

/** The options of askForWork(). */
export interface WorkOptions extends LongOptions, AskOptions {
  /**
   * Called with the name of the image if the work was to be stopped and cannot be: it continues in
   * the mount.
   */
  onContinues?: ((image: string) => void) | undefined;
}

/**
 * The text of a command with one or two words, for example an image and, unless it is left out, its
 * snapshot.
 */
export function joinWords(first: string, second: string | null | undefined): string {
  return second == null ? first : `${first} ${second}`;
}

/**
 * As askImage(), for long commands. `onProgress` is called when the mount reports progress, and
 * `signal` stops the command in the mount.
 */
export async function askForWork(
  mount: PcowMount,
  image: string,
  control: ImageControl,
  text: string,
  { signal, onProgress, onWait, onContinues }: WorkOptions = {},
): Promise<void> {
  if (signal?.aborted) {
    throw new PcowError('PCOW_CANCELLED', `${image}: ${control} was stopped before it began`, {
      cause: signal.reason,
    });
  }
  await mustAnswerOnTheWay(controlDirectory(mount, image), { onWait });
  let over = false;
  let total = 0;
  const asked = askImage(mount, image, control, text, { onWait }).finally(() => {
    over = true;
  });
  const ended = asked.catch(() => undefined); // its error is thrown below
  const look = async () => {
    const { working } = (await statusIn(controlDirectory(mount, image))) ?? {};
    if (over || working?.command !== control || working.text !== text || working.total === 0)
      return;
    ({ total } = working);
    onProgress?.(working.done, total);
  };
  const cancel = () => {
    askImage(mount, image, 'cancel', `${control} ${text}`).catch((error: unknown) => {
      debug('not cancelled: %s', error);
      if (!over) onContinues?.(image);
    });
  };
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    let looking: Promise<void> | null = null;
    while (!over && onProgress !== undefined) {
      await Promise.race([ended, sleep(LOOK)]);
      // One check at a time. The wait for the command notices a mount that does not answer any
      // more.
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

/**
 * Never O_TRUNC: the write alone is the command. One write(2): the mount takes each write as a
 * separate command.
 */
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

/**
 * Opens it for reading too, to get the message of an error; only for writing if the user may not
 * read the image.
 */
async function openControl(file: string): Promise<FileHandle> {
  try {
    return await open(file, constants.O_RDWR);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EACCES')
      return open(file, constants.O_WRONLY);
    throw error;
  }
}

/**
 * Reads why the write through this descriptor has just failed; null if the control file does not
 * say.
 */
async function failureOn(handle: FileHandle, cause: unknown): Promise<PcowError | null> {
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(MOST_SAID), 0, MOST_SAID, 0);
    const { code, message } = JSON.parse(buffer.toString('utf8', 0, bytesRead)) as ToldError;
    return new PcowError(code, message, { cause });
  } catch (error) {
    // The file may be unreadable, or the mount was started by an older version.
    debug('no reason: %s', error);
    return null;
  }
}

/** What was tried: needed to find its error in `status`. */
interface Tried {
  /** As in `lastError`. */
  command: string;
  /** The time before it was tried. */
  since: Date;
}

/**
 * Makes the error for an operation that the mount refused. `directory`: the control directory with
 * the `status`. `tried`: what the `lastError` there must be about; null: ignore `lastError`.
 */
async function explained(
  error: unknown,
  mount: PcowMount,
  what: string,
  directory: string,
  tried: Tried | null,
  options: AskOptions,
): Promise<unknown> {
  if (
    isPcowError(error) ||
    !(error instanceof Error) ||
    !('errno' in error) ||
    typeof error.errno !== 'number'
  ) {
    return error;
  }
  const name = getSystemErrorName(error.errno);
  const code = codeOfAnswer(-error.errno);
  const known = { errno: -error.errno, cause: error };
  const status = await asking(mount, () => statusIn(directory), options).catch(
    (failure: unknown) => {
      if (isPcowError(failure)) return failure;
      throw failure;
    },
  );
  if (isPcowError(status)) return status;
  if (status === null) {
    return code === 'PCOW_PERMISSION'
      ? new PcowError(
          code,
          `this user may not ask the mount on ${mount.mountpoint} for “${what}” (${name})`,
          known,
        )
      : new PcowError(
          code,
          `the mount on ${mount.mountpoint} does not support “${what}” (${name})`,
          {
            ...known,
            next: `end the mount first: pcow umount ${word(mount.mountpoint)}`,
          },
        );
  }
  // An image that the mount cannot open has only a status file, which says why.
  const state = codeOfState(status.state);
  if (state !== null) {
    // For an image outside of the directory, the message already says what to do; the usual hint is
    // for a base that is outside.
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
