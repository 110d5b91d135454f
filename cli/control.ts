/**
 * Asking a mount to change its images, by its control files. The mount is the one writer of everything in its
 * directory, so where there is one, this is the only way.
 *
 * A write that fails brings an errno; the sentence that goes with it is in the image's `status`.
 */
import { constants } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { getSystemErrorName } from 'node:util';
import path from 'node:path';
import createDebug from 'debug';
import type { PcowErrorCode } from '../src/engine/errors.js';
import type { PcowMount } from '../src/mounts.js';
import { Failure } from './errors.js';

const debug = createDebug('pcow:cli:control');

export type ImageControl = 'snapshot' | 'rollback' | 'delete' | 'clone' | 'resize';

/** Writes `text` to a control file of one image; returns when the mount has done it. */
export async function askImage(mount: PcowMount, image: string, control: ImageControl, text: string): Promise<void> {
  const directory = path.join(mount.mountpoint, '.pcow', image);
  await writeControl(mount, path.join(directory, control), text, `${image}: ${control} ${text}`, directory);
}

/** One cut across several images of a mount. */
export async function askForCut(mount: PcowMount, name: string, images: string[]): Promise<void> {
  const directory = path.join(mount.mountpoint, '.pcow');
  const text = [name, ...images].join(' ');
  await writeControl(mount, path.join(directory, 'snapshot'), text, `snapshot ${text}`, directory);
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
    const handle = await open(file, constants.O_WRONLY);
    try {
      await handle.write(text + '\n');
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw await explain(error, mount, what, statusDirectory);
  }
}

/** The codes of the errnos that a mount answers with; where several codes share one, they share the exit code too. */
const CODE_OF_ERRNO: Record<string, PcowErrorCode> = {
  EINVAL: 'PCOW_INVALID',
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

async function explain(error: unknown, mount: PcowMount, what: string, statusDirectory: string): Promise<unknown> {
  if (!(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') {
    return error;
  }
  const errno = getSystemErrorName(error.errno);
  if (errno === 'ENOTCONN' || errno === 'ECONNABORTED') {
    return new Failure(
      'PCOW_MOUNT',
      `the mount on ${mount.mountpoint} has died`,
      `end it with “pcow umount ${mount.mountpoint}”, then mount ${mount.directory} again; nothing is lost`,
    );
  }
  const sentence = await lastError(statusDirectory);
  return new Failure(
    CODE_OF_ERRNO[errno] ?? 'PCOW_IO',
    sentence ?? `the mount on ${mount.mountpoint} refused “${what}” (${errno})`,
  );
}

/** The sentence of the last command that failed, from a `status` file. */
async function lastError(statusDirectory: string): Promise<string | null> {
  try {
    const status: unknown = JSON.parse(await readFile(path.join(statusDirectory, 'status'), 'utf8'));
    const message = memberOf(memberOf(status, 'lastError'), 'message');
    return typeof message === 'string' ? message : null;
  } catch (error) {
    // The errno alone must do then, and it is at hand.
    debug('no status in %s: %s', statusDirectory, error);
    return null;
  }
}

function memberOf(value: unknown, key: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined;
}
