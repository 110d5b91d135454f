/** The names of a directory's images in its mount: a file NAME.pcow is the image NAME. */
import path from 'node:path';

import { MOUNT_CONTROLS } from './control-names.js';
import { FORBIDDEN_IN_NAMES, PcowError } from '../engine/index.js';

export const IMAGE_SUFFIX = '.pcow';

/** The names of control files: an image with such a name has a flat file but no control files. */
export const RESERVED_NAMES: readonly string[] = MOUNT_CONTROLS;

const MAX_FILE_NAME = 255;

/**
 * The name of the image in a file of the directory; null if the mount does not show such a file.
 */
export function imageNameOf(fileName: string): string | null {
  if (!fileName.endsWith(IMAGE_SUFFIX) || fileName.startsWith('.') || fileName === IMAGE_SUFFIX) {
    return null;
  }
  return fileName.slice(0, -IMAGE_SUFFIX.length);
}

/** The image file for a name that came from the kernel (one path component). */
export function imageFile(directory: string, name: string): string {
  return path.join(directory, name + IMAGE_SUFFIX);
}

/** Rejects a name that a new image cannot have. */
export function checkNewImageName(name: string): void {
  const problem = problemOf(name);
  if (problem !== null) {
    throw new PcowError(
      'PCOW_INVALID',
      `an image can't be named ${JSON.stringify(name)}: ${problem}`,
    );
  }
}

function problemOf(name: string): string | null {
  if (name === '' || name === '.' || name === '..') {
    return 'it is not a valid name';
  }
  if (name.includes('/')) {
    return 'it contains a slash; new images go into the image directory';
  }
  if (name.startsWith('.')) {
    return 'it begins with a dot, so it would be hidden';
  }
  if (name.includes('@')) {
    return 'it contains "@", which separates an image from its snapshot';
  }
  // As for snapshots: docs/words.md, "Names".
  if (FORBIDDEN_IN_NAMES.test(name)) {
    return 'it contains white space or a control character';
  }
  if (/\p{Surrogate}/u.test(name)) {
    return 'it is not well-formed Unicode';
  }
  if (name.endsWith(IMAGE_SUFFIX)) {
    return `its file would end in ${IMAGE_SUFFIX} twice, and look like that of ${JSON.stringify(name.slice(0, -IMAGE_SUFFIX.length))}`;
  }
  if (RESERVED_NAMES.includes(name)) {
    return 'a control file of the mount has that name';
  }
  const bytes = Buffer.byteLength(name + IMAGE_SUFFIX);
  return bytes > MAX_FILE_NAME
    ? `with ${IMAGE_SUFFIX} it has ${bytes} bytes; the limit is ${MAX_FILE_NAME}`
    : null;
}
