/** Giving an image file another name, with the images that stand on it going along. */
import { link, stat, unlink } from 'node:fs/promises';

import { PcowError } from './errors.js';
import type { Image } from './image.js';

/** An image that stands on the one that is renamed, open for writing. */
export interface Standing {
  image: Image;
  /** The id of the layer that it stands on. */
  layer: number;
}

/**
 * Renames an image file within its directory. First it has both names, then every image that stands on it is told the new
 * one, then the old one goes: whatever happens in between, each base is found, and the same call again finishes it.
 */
export async function renameImage(from: string, to: string, standing: Standing[]): Promise<void> {
  if (!(await isSameFile(from, to))) {
    try {
      await link(from, to);
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'EEXIST') {
        throw new PcowError('PCOW_EXISTS', `${from} can't be renamed: there is ${to} already`);
      }
      throw error;
    }
  }
  const told: Standing[] = [];
  try {
    for (const one of standing) {
      await one.image.setBase({ path: to, layer: one.layer });
      told.push(one);
    }
  } catch (error) {
    for (const { image, layer } of told) await image.setBase({ path: from, layer });
    await unlink(to);
    throw error;
  }
  await unlink(from);
}

async function isSameFile(one: string, other: string): Promise<boolean> {
  try {
    const [a, b] = [await stat(one, { bigint: true }), await stat(other, { bigint: true })];
    return a.dev === b.dev && a.ino === b.ino;
  } catch {
    return false;
  }
}
