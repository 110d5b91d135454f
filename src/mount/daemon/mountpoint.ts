/**
 * Checks what must be true before an image directory is mounted, each with its own message. A
 * mountpoint is accessed only after the kernel's list of mounts has been read. Only a helper
 * process accesses a mount that may be dead: accessing a hung mount would hang.
 */
import { execFile } from 'node:child_process';
import { constants as fsConstants } from 'node:fs';
import { access, readdir, realpath, stat } from 'node:fs/promises';
import { constants } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { PcowError } from '../../engine/index.js';
import { lifeOf, mountOnTheWay, type Trouble, troubleOf } from '../../images/mount-life.js';
import {
  type MountTableEntry,
  mountTable,
  MOUNT_TYPE,
  type PcowMount,
} from '../../images/mount-table.js';
import { word } from '../../engine/quote.js';
import { isSystemError, sentenceOf } from '../failure.js';
import { usersBelow } from '../../engine/processes.js';
import { log } from '../log.js';

const run = promisify(execFile);

/** Milliseconds between attempts to unmount. */
const PAUSE = 20;

/** A mount that is busy at so many attempts is in use. */
const LOOKS_AT_BUSY = 25;

/** Bytes: fuse-native silently truncates longer paths. */
const MAX_PATH = 1000;

export function mountError(
  message: string,
  cause?: unknown,
  errno: keyof typeof constants.errno = 'EIO',
): PcowError {
  return new PcowError('PCOW_MOUNT', message, { errno: constants.errno[errno], cause });
}

/** The image directory as a real path. */
export async function checkedDirectory(directory: string): Promise<string> {
  const real = await realPathOf(directory, 'the image directory');
  if (!(await stat(real)).isDirectory()) {
    throw mountError(
      `${directory} is not a directory: name the directory of the images, not an image`,
      undefined,
      'ENOTDIR',
    );
  }
  const holder = mountAround(await mountTable(), real);
  if (holder) {
    throw mountError(
      `${directory} is in the mount on ${holder.mountpoint}: mount the directory of the image files, ${holder.source}`,
      undefined,
      'EINVAL',
    );
  }
  return real;
}

/**
 * The mountpoint as a real path: an empty directory on which nothing is mounted. Removes a dead
 * Pcow mount.
 */
export async function checkedMountpoint(given: string, directory: string): Promise<string> {
  await clearDeadMount(given);
  const mountpoint = await realPathOf(given, 'the mountpoint');
  const mounts = await mountTable();
  const there = mounts.findLast((mount) => mount.mountpoint === mountpoint);
  if (there) {
    throw mountError(
      there.type === MOUNT_TYPE
        ? `${there.source} is mounted on ${given} already: "pcow umount ${word(given)}" ends that mount`
        : `something is mounted on ${given} already (${there.type} of ${there.source}): choose another mountpoint`,
      undefined,
      'EBUSY',
    );
  }
  const around = mountAround(mounts, mountpoint);
  if (around) {
    throw mountError(
      `${given} is in the mount on ${around.mountpoint}: choose a mountpoint outside of it`,
      undefined,
      'EBUSY',
    );
  }
  if (!(await stat(mountpoint)).isDirectory()) {
    throw mountError(`the mountpoint ${given} is not a directory`, undefined, 'ENOTDIR');
  }
  checkApart(given, mountpoint, directory);
  if ((await readdir(mountpoint)).length > 0) {
    throw mountError(
      `the mountpoint ${given} is not empty: choose an empty directory`,
      undefined,
      'ENOTEMPTY',
    );
  }
  const longest = Math.max(Buffer.byteLength(mountpoint), Buffer.byteLength(directory));
  if (longest > MAX_PATH) {
    throw mountError(
      `the path of the mountpoint or of the directory is longer than ${MAX_PATH} bytes`,
      undefined,
      'ENAMETOOLONG',
    );
  }
  return mountpoint;
}

/**
 * A mount on or above the image directory would hide the images from the process that serves them.
 */
function checkApart(given: string, mountpoint: string, directory: string): void {
  if (mountpoint === directory) {
    throw mountError(
      `${given} is the image directory itself: choose an empty directory elsewhere`,
      undefined,
      'EINVAL',
    );
  }
  if (directory.startsWith(mountpoint + path.sep)) {
    throw mountError(
      `the image directory is below the mountpoint ${given}: choose another mountpoint`,
      undefined,
      'EINVAL',
    );
  }
  if (mountpoint.startsWith(directory + path.sep)) {
    throw mountError(
      `the mountpoint ${given} is in the image directory: choose one outside of it`,
      undefined,
      'EINVAL',
    );
  }
}

/** Checks what FUSE needs on this machine. */
export async function checkFuse(): Promise<void> {
  try {
    await access('/dev/fuse', fsConstants.R_OK | fsConstants.W_OK);
  } catch (cause) {
    throw mountError(
      isSystemError(cause, 'ENOENT')
        ? 'there is no /dev/fuse: load the kernel module ("modprobe fuse"), or give the container this device'
        : 'this user may not open /dev/fuse: run as root, or set its mode to 0666',
      cause,
      'ENODEV',
    );
  }
  const places = (process.env.PATH ?? '').split(path.delimiter).filter((place) => place !== '');
  const found = await Promise.all(
    places.map((place) =>
      access(path.join(place, 'fusermount3'), fsConstants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  if (!found.includes(true)) {
    throw mountError('fusermount3 is not installed: "apt-get install fuse3"', undefined, 'ENOENT');
  }
}

/**
 * A mount whose process has died answers ENOTCONN forever. It serves nothing any more, so it is
 * removed. A mount that does not answer at all is not dead: then this fails, and says what to do.
 */
export async function clearDeadMount(given: string): Promise<boolean> {
  const mount = await mountOnTheWay(given);
  if (mount === null) return false;
  const life = await lifeOf(mount);
  const trouble = life.state === 'silent' ? troubleOf(mount, life) : null;
  if (trouble !== null) throw silent(trouble);
  if (life.state === 'alive' || (await placeOf(given)) !== mount.mountpoint) return false;
  await detach(mount.mountpoint);
  log(`${given}: removed a dead mount of ${mount.directory}`);
  return true;
}

/** The error for a mount that does not answer. */
export function silent({ message, cure }: Trouble): PcowError {
  return mountError(`${message}: ${cure}`, undefined, 'ETIMEDOUT');
}

/**
 * Removes a mount from the directory tree. Processes that still use it continue until they are
 * done.
 */
export async function detach(mountpoint: string): Promise<void> {
  await run('fusermount3', ['-u', '-z', '--', mountpoint]);
}

/** The real path of a mountpoint. Only the directories above it are accessed. */
export async function placeOf(given: string): Promise<string> {
  const absolute = path.resolve(given);
  const mount = await mountOnTheWay(given);
  if (mount !== null && (await isItself(absolute, mount))) return mount.mountpoint;
  return mount === null ? realpath(given).catch(() => absolute) : absolute;
}

/** Whether a path that leads into a mount ends at its mountpoint. */
async function isItself(absolute: string, { mountpoint }: PcowMount): Promise<boolean> {
  if (absolute === mountpoint) return true;
  // The last part of the path is the mountpoint, or a link to it.
  const above = await mountOnTheWay(path.dirname(absolute));
  return above === null;
}

async function realPathOf(given: string, what: string): Promise<string> {
  try {
    return await realpath(given);
  } catch (cause) {
    if (isSystemError(cause, 'ENOENT')) {
      throw mountError(
        `${what} ${given} does not exist: create it first ("mkdir -p")`,
        cause,
        'ENOENT',
      );
    }
    throw mountError(`${what} ${given} can't be reached: ${sentenceOf(cause)}`, cause);
  }
}

function mountAround(mounts: MountTableEntry[], real: string): MountTableEntry | undefined {
  return mounts.find(
    ({ type, mountpoint }) =>
      type === MOUNT_TYPE && (real === mountpoint || real.startsWith(mountpoint + path.sep)),
  );
}

/**
 * Unmounts. A process that only looks at the mount (`pcow list`, a backup's `stat`) has it in use
 * for a moment, so a busy mount is tried again for half a second. Rejects with EBUSY and the
 * processes that use it; then it is still mounted.
 */
export async function unmount(mountpoint: string): Promise<void> {
  for (let look = 1; ; look += 1) {
    try {
      await run('fusermount3', ['-u', '--', mountpoint]);
      return;
    } catch (cause) {
      if (!isBusy(cause) || look === LOOKS_AT_BUSY) throw await unmountFailure(mountpoint, cause);
    }
    await sleep(PAUSE);
  }
}

function isBusy(cause: unknown): boolean {
  return /busy/i.test(sentenceOf(cause));
}

async function unmountFailure(mountpoint: string, cause: unknown): Promise<Error> {
  if (!isBusy(cause)) {
    return mountError(`${mountpoint} could not be unmounted: ${sentenceOf(cause)}`, cause);
  }
  const users = await usersBelow(mountpoint);
  return inUse(
    mountpoint,
    users.length > 0 ? users : ['a loop device, another mount, or a process that cannot be seen'],
    cause,
  );
}

export function inUse(mountpoint: string, users: string[], cause?: unknown): PcowError {
  return mountError(
    `${mountpoint} is in use by ${users.join(', ')}: end that first`,
    cause,
    'EBUSY',
  );
}
