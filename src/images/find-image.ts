/**
 * What IMAGE, IMAGE@SNAPSHOT and the name of a new image stand for.
 *
 * An image is named by its file, by its flat file in a mount, or by either without `.pcow`. Code
 * that works on it needs to know both of its sides: the image file, and the mount of its directory
 * if there is one, because a mount is the only writer of its images and takes requests through its
 * control files. A name is looked up once and the result is passed on, because the same name may
 * stand for another image a moment later.
 */
import { realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { checkSnapshotName, MAX_NAME_LENGTH } from '../engine/index.js';
import { checkNewImageName, IMAGE_SUFFIX } from './image-names.js';
import { mountHolding, type PcowMount } from './mount-table.js';
import { type AskOptions, mountOf, mustAnswerOnTheWay } from './mount-answers.js';
import { PcowError } from '../engine/errors.js';
import { quote, word } from '../engine/quote.js';

/** The directory of control files in a mount. */
const CONTROL = '.pcow';

/** An image that was found, or the path of one that will be made. */
export interface ImageTarget {
  /** As it was given: messages repeat this. */
  given: string;
  /**
   * The image file: a real path; for an image that does not exist yet, a path in a real directory.
   */
  file: string;
  /** Its name in the mount; also its short name in lists. */
  name: string;
  /** The mount of the image's directory, or null. */
  mount: PcowMount | null;
  /** The flat file, if the user named that. */
  flat?: string;
}

/** An image, or a snapshot of it. */
export interface Target {
  /** The image. */
  image: ImageTarget;
  /**
   * The name of the snapshot; null: the image as it is now. It is not known yet whether the
   * snapshot exists.
   */
  snapshot: string | null;
}

/** A named snapshot. */
export interface SnapshotTarget extends Target {
  /** Its name. */
  snapshot: string;
}

/** A directory of images. */
export interface ImageDirectory {
  /** A real path. */
  directory: string;
  /** The mount of the directory, or null. */
  mount: PcowMount | null;
}

/**
 * Finds an image, or fails and says what is wrong with the name. Errors: PCOW_NOT_FOUND,
 * PCOW_NOT_AN_IMAGE, PCOW_MOUNT.
 */
export async function findImage(given: string, options: AskOptions = {}): Promise<ImageTarget> {
  const { image, snapshot } = await findTarget(given, options);
  if (snapshot !== null) {
    throw new PcowError(
      'PCOW_USAGE',
      `${quote(given)} names a snapshot, but this command is for a whole image`,
      {
        next: `omit the name of the snapshot: ${word(given.slice(0, -snapshot.length - 1))}`,
      },
    );
  }
  return image;
}

/** Finds IMAGE or IMAGE@SNAPSHOT. The engine checks whether the snapshot exists. */
export async function findTarget(given: string, options: AskOptions = {}): Promise<Target> {
  const whole = await lookFor(given, options);
  if (whole !== null) {
    return { image: whole, snapshot: null };
  }
  // A path may contain “@”, but a snapshot's name cannot: the image is the longest existing part
  // before an “@”.
  for (let at = given.lastIndexOf('@'); at > 0; at = given.lastIndexOf('@', at - 1)) {
    const image = await lookFor(given.slice(0, at), options);
    if (image !== null) {
      const snapshot = given.slice(at + 1);
      checkSnapshotName(snapshot);
      return { image, snapshot };
    }
  }
  const at = given.lastIndexOf('@');
  throw await notFound(at > 0 && !given.slice(at).includes('/') ? given.slice(0, at) : given);
}

/** Finds IMAGE@SNAPSHOT. The snapshot must be named. */
export async function findSnapshotTarget(
  given: string,
  options: AskOptions = {},
): Promise<SnapshotTarget> {
  const { image, snapshot } = await findTarget(given, options);
  if (snapshot === null) {
    throw new PcowError('PCOW_USAGE', `${quote(given)} does not name a snapshot`, {
      next: `write IMAGE@NAME: ${word(`${given}@NAME`)}`,
    });
  }
  return { image, snapshot };
}

/**
 * The file for a new image with this name: in the image directory, even if the path is in its
 * mount.
 */
export async function newImage(given: string, options: AskOptions = {}): Promise<ImageTarget> {
  if (given.endsWith('/')) {
    throw new PcowError('PCOW_INVALID', `${quote(given)} names a directory, not an image`);
  }
  const name = path.basename(given, IMAGE_SUFFIX);
  checkNewImageName(name);
  const fileName = name + IMAGE_SUFFIX;
  const directory = await existingDirectory(path.dirname(given), options);
  const held = await mountHolding(directory);
  if (held === null) {
    const mount = await mountOf(directory);
    return { given, file: path.join(directory, fileName), name, mount };
  }
  if (held.inside !== '') {
    throw new PcowError(
      'PCOW_INVALID',
      `${quote(given)} is among the control files of a mount, where no image can be`,
    );
  }
  return { given, file: path.join(held.mount.directory, fileName), name, mount: held.mount };
}

/**
 * The file for a new image with exactly this name, which a mount shows only if it ends in `.pcow`.
 */
export async function imageAsNamed(given: string, options: AskOptions = {}): Promise<ImageTarget> {
  const fileName = path.basename(given);
  if (fileName.endsWith(IMAGE_SUFFIX)) {
    return newImage(given, options);
  }
  checkNewImageName(fileName);
  const file = await newFile(given, { ...options, instead: `name it ${fileName}${IMAGE_SUFFIX}` });
  return { given, file, name: fileName, mount: null };
}

/**
 * The path for a new file that a mount does not show. `instead` is the next step if the path is in
 * a mount.
 */
export async function newFile(
  given: string,
  {
    instead = 'choose a directory that is not mounted',
    ...options
  }: AskOptions & { instead?: string } = {},
): Promise<string> {
  const directory = await existingDirectory(path.dirname(given), options);
  if ((await mountHolding(directory)) !== null) {
    throw new PcowError(
      'PCOW_INVALID',
      `${quote(given)} is in a mount, which contains only images`,
      {
        next: instead,
      },
    );
  }
  const file = path.join(directory, path.basename(given));
  const there = await stat(file).catch(() => null);
  if (given.endsWith('/') || there?.isDirectory() === true) {
    throw new PcowError('PCOW_INVALID', `${quote(given)} names a directory, not a file`, {
      next: 'name the file in it',
    });
  }
  if (there?.isFile() === false) {
    throw new PcowError('PCOW_INVALID', `${quote(given)} is not a regular file`, {
      next: 'make a file, and copy that there',
    });
  }
  return file;
}

/** Finds an image directory by its own path or by the mountpoint of its mount. */
export async function findDirectory(
  given: string,
  options: AskOptions = {},
): Promise<ImageDirectory> {
  const directory = await existingDirectory(given, options);
  const held = await mountHolding(directory);
  if (held?.inside === '') {
    return { directory: held.mount.directory, mount: held.mount };
  }
  const mount = await mountOf(directory);
  return { directory, mount };
}

/** The path of the image's flat file in the mount. */
export function flatFile(image: { name: string }, mount: PcowMount): string {
  return path.join(mount.mountpoint, image.name);
}

async function lookFor(given: string, options: AskOptions): Promise<ImageTarget | null> {
  for (const candidate of given.endsWith(IMAGE_SUFFIX) ? [given] : [given, given + IMAGE_SUFFIX]) {
    const real = await realPathOfFile(candidate, given, options);
    if (real !== null) {
      return describe(given, real);
    }
  }
  return null;
}

async function describe(given: string, real: string): Promise<ImageTarget> {
  const held = await mountHolding(real);
  if (held === null) {
    const mount = await mountOf(path.dirname(real));
    const name = path.basename(real, IMAGE_SUFFIX);
    // A mount shows only `*.pcow`: other names (of pcow-img) are images at rest.
    return { given, file: real, name, mount: real.endsWith(IMAGE_SUFFIX) ? mount : null };
  }
  if (held.inside.includes('/')) {
    const [, image, at, snapshot] = held.inside.split('/');
    throw new PcowError('PCOW_INVALID', `${quote(given)} is not the flat file of an image`, {
      next:
        at === 'at' && image !== undefined && snapshot !== undefined
          ? `name the snapshot as ${word(`${path.join(held.mount.mountpoint, image)}@${snapshot}`)}`
          : `the files under ${path.join(held.mount.mountpoint, CONTROL)} are control files of the mount`,
    });
  }
  const file = path.join(held.mount.directory, held.inside + IMAGE_SUFFIX);
  return { given, file, name: held.inside, mount: held.mount, flat: real };
}

async function notFound(given: string): Promise<PcowError> {
  const bytes = Buffer.byteLength(path.basename(given));
  if (bytes > MAX_NAME_LENGTH) {
    return new PcowError(
      'PCOW_INVALID',
      `the name ${quote(given)} has ${bytes} bytes; the limit is ${MAX_NAME_LENGTH}`,
    );
  }
  const there = given !== '' && (await isDirectory(given));
  const directory = there ? given : path.dirname(given);
  return new PcowError(
    'PCOW_NOT_FOUND',
    `there is no image ${quote(given)}${there ? ': this is a directory' : ''}`,
    {
      next: (await isDirectory(directory))
        ? `“pcow list ${word(directory)}” shows the images of that directory`
        : `there is no directory ${quote(directory)} either: check the path`,
    },
  );
}

function isDirectory(file: string): Promise<boolean> {
  return stat(file).then(
    (status) => status.isDirectory(),
    () => false,
  );
}

/**
 * The real path of a regular file; null if there is none (a directory `vm1` may exist beside the
 * image `vm1.pcow`).
 */
async function realPathOfFile(
  candidate: string,
  given: string,
  options: AskOptions,
): Promise<string | null> {
  await mustAnswerOnTheWay(candidate, options);
  try {
    const real = await realpath(candidate);
    const status = await stat(real);
    if (status.isDirectory()) {
      return null;
    }
    if (!status.isFile()) {
      throw new PcowError(
        'PCOW_NOT_AN_IMAGE',
        `${quote(given)} is not a regular file, so it is not an image`,
        {
          next: 'name the image file',
        },
      );
    }
    return real;
  } catch (error) {
    const errno = errnoName(error);
    if (errno === 'ENOENT' || errno === 'ENOTDIR' || errno === 'ENAMETOOLONG') {
      return null;
    }
    throw pathFailure(error, given);
  }
}

async function existingDirectory(given: string, options: AskOptions): Promise<string> {
  await mustAnswerOnTheWay(given, options);
  try {
    const real = await realpath(given);
    if (!(await stat(real)).isDirectory()) {
      throw new PcowError('PCOW_INVALID', `${quote(given)} is not a directory`);
    }
    return real;
  } catch (error) {
    throw pathFailure(error, given);
  }
}

/** Explains a system error about a path. */
function pathFailure(error: unknown, given: string): unknown {
  switch (errnoName(error)) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new PcowError('PCOW_NOT_FOUND', `there is no directory ${quote(given)}`, {
        next: 'check the path, or create the directory first',
      });
    case 'ENAMETOOLONG':
      return new PcowError(
        'PCOW_INVALID',
        `the name ${quote(given)} is too long for the filesystem`,
      );
    case 'ELOOP':
      return new PcowError(
        'PCOW_INVALID',
        `${quote(given)} is a symbolic link that leads back to itself`,
      );
    case 'EACCES':
    case 'EPERM':
      return new PcowError('PCOW_PERMISSION', `this user may not read ${quote(given)}`);
    case 'ENOTCONN':
    case 'ECONNABORTED':
      return new PcowError('PCOW_MOUNT', `the mount that contains ${quote(given)} has died`, {
        next: 'end it with “pcow umount MOUNTPOINT”, then mount the directory again; nothing is lost',
      });
    default:
      return error;
  }
}

/** For example `ENOENT`, for a failed system call; undefined for any other error. */
function errnoName(error: unknown): string | undefined {
  const code =
    error instanceof Error && 'syscall' in error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : undefined;
}
