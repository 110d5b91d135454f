/** Which images of a directory stand directly on an image: what must be asked before it, or a snapshot of it, goes. */
import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';

import { isPcowError, PcowError } from './errors.js';
import { Image } from './image.js';
import { checkPath } from './validate.js';

/** An image that stands on another. */
export interface Dependant {
  /** The path of the image that stands on the given one. */
  image: string;
  /** The id of the layer that it stands on. */
  layer: number;
}

/**
 * The images `*.pcow` in `directory` whose base is the image file at `path`. Files that are no images, or damaged ones, are
 * passed over. Fails where an image can't be read for a reason that may pass (a missing right, an I/O error): better
 * to refuse than to pull a base from under it.
 */
export async function dependants(directory: string, imagePath: string): Promise<Dependant[]> {
  checkPath('the directory', directory);
  checkPath('the path of the image', imagePath);
  const found: Dependant[] = [];
  const self = await identity(imagePath);
  if (self === null) return found;
  for (const name of (await readdir(directory)).sort()) {
    if (!name.endsWith('.pcow')) continue;
    const candidate = path.join(directory, name);
    const base = await baseOf(candidate, imagePath);
    // The engine has compared the uuid when it opened the chain, so the same file is the same image.
    if (base && (await identity(base.resolved)) === self) found.push({ image: candidate, layer: base.layer });
  }
  return found;
}

/** For messages: “vm1.pcow stands on it”, “vm1.pcow, vm2.pcow stand on it”. */
export function saidOf(standing: Dependant[]): string {
  const names = standing.map(({ image }) => path.basename(image)).join(', ');
  return `${names} ${standing.length === 1 ? 'stands' : 'stand'} on it`;
}

/** Device and inode: equal for every path of one file. null where there is none. */
async function identity(file: string): Promise<string | null> {
  try {
    const { dev, ino } = await stat(file, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return null;
  }
}

async function baseOf(candidate: string, imagePath: string) {
  try {
    const image = await Image.open(candidate);
    try {
      return image.info().base;
    } finally {
      await image.close();
    }
  } catch (error) {
    const harmless = isPcowError(
      error,
      'PCOW_NOT_AN_IMAGE',
      'PCOW_CORRUPT',
      'PCOW_NOT_FOUND', // it went away meanwhile
      'PCOW_BASE_MISSING', // then its base is not this image, which is there
      'PCOW_BASE_CHANGED',
      'PCOW_BASE_LOOP',
    );
    if (harmless) return null;
    const reason = error instanceof Error ? error.message : String(error);
    throw new PcowError('PCOW_BUSY', `can't tell whether ${candidate} stands on ${imagePath}: ${reason}`, {
      cause: error,
    });
  }
}
