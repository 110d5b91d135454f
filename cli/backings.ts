/** The images that a guest is to have as memory: mounted, each once, with an id each. */
import { stat } from 'node:fs/promises';
import { asking } from './asking.js';
import { Failure } from './output/errors.js';
import { backingIds, type Backing } from './qemu.js';
import { quote } from './quote.js';
import { findImage, flatFile } from './target.js';

export async function backingsFor(given: string[], id?: string): Promise<Backing[]> {
  const ids = backingIds(id, given.length);
  const backings: Backing[] = [];
  for (const [at, name] of given.entries()) {
    const image = await findImage(name);
    if (image.mount === null) {
      throw new Failure(
        'PCOW_MOUNT',
        `${quote(name)} is not mounted, and QEMU maps the flat file of a mount`,
        'pcow mount DIR MOUNTPOINT, then name MOUNTPOINT/NAME',
      );
    }
    const { mount } = image;
    const file = flatFile(image, mount);
    if (backings.some((other) => other.file === file)) {
      throw new Failure('PCOW_USAGE', `${quote(name)} is named twice: a guest has an image once`);
    }
    backings.push({ file, size: (await asking(mount, () => stat(file))).size, id: ids[at] ?? '' });
  }
  return backings;
}
