/**
 * The images that a guest will have as memory: each is mounted, is used once, and has its own id.
 */
import { stat } from 'node:fs/promises';
import { asking, type AskOptions } from '../images/mount-answers.js';
import { isPcowError, PcowError } from '../engine/errors.js';
import { isInPersistentMemory } from '../engine/places.js';
import { backingIds, type Backing } from './qemu-options.js';
import { quote } from '../engine/quote.js';
import { findImage, flatFile } from '../images/find-image.js';

/**
 * The flat files of mounted images, with their sizes and an id for each. `id`: the beginning of
 * these ids; default: `pcow`. Errors: PCOW_MOUNT if an image is not mounted.
 */
export async function backingsFor(
  given: string[],
  { id, ...options }: AskOptions & { id?: string | undefined } = {},
): Promise<Backing[]> {
  const ids = backingIds(id, given.length);
  const backings: Backing[] = [];
  for (const [at, name] of given.entries()) {
    const image = await findImage(name, options);
    if (image.mount === null) {
      throw new PcowError(
        'PCOW_MOUNT',
        `${quote(name)} is not mounted, and QEMU maps the flat file of a mount`,
        {
          next: 'pcow mount DIR MOUNTPOINT, then name MOUNTPOINT/NAME',
        },
      );
    }
    const { mount } = image;
    const file = flatFile(image, mount);
    if (backings.some((other) => other.file === file)) {
      throw new PcowError(
        'PCOW_USAGE',
        `${quote(name)} is named twice: a guest can have an image only once`,
      );
    }
    backings.push({
      file,
      size: (await asking(mount, () => stat(file), options)).size,
      persistent: await maybePersistent(image.file),
      id: ids[at] ?? '',
    });
  }
  return backings;
}

/**
 * Whether an image is in persistent memory. If this user may not read the image file, the answer is
 * no.
 */
export async function maybePersistent(file: string): Promise<boolean> {
  try {
    return await isInPersistentMemory(file);
  } catch (error) {
    if (!isPcowError(error, 'PCOW_PERMISSION', 'PCOW_NOT_FOUND')) throw error;
    return false;
  }
}
