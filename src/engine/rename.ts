/** Giving an image file another name, with the images that stand on it going along. */
import path from 'node:path';

import { basePathOf, type Dependant, survey } from './dependants.js';
import { PcowError } from './errors.js';
import { lockStanding, noLock } from './file-lock.js';
import type { Image } from './image.js';
import { addName, isTaken, relationOf, removeName } from './names.js';

/** An image that stands on the one that is renamed, open for writing. */
export interface Standing {
  image: Image;
  /** The id of the layer that it stands on. */
  layer: number;
}

/**
 * Renames an image file within its directory. `open` opens an image that stands on it for writing; `close` is called for each in the end.
 *
 * First it has both names, then every image that stands on it is told the new one, then the old one goes, and each step is durable
 * before the next begins: whatever ends this in between, a process or the host, each base is found, and the same call again finishes it.
 * Nobody comes to stand on it by its old name meanwhile, and who looks which images stand on its base sees it under one name at least.
 */
export async function renameImage(
  from: string,
  to: string,
  { open, close }: { open: (dependant: Dependant) => Promise<Standing>; close: (standing: Standing) => Promise<void> },
): Promise<void> {
  await checkNames(from, to);
  const own = await lockStanding(from, 'exclusive');
  const standing: Standing[] = [];
  try {
    const base = await basePathOf(from);
    const below = base !== null && (await isTaken(base)) ? await lockStanding(base, 'shared') : noLock;
    try {
      const { standing: found, unclear } = await survey(path.dirname(from), from);
      const [first] = unclear;
      if (first !== undefined) {
        throw new PcowError(
          'PCOW_BUSY',
          `can't tell whether ${first.image} stands on ${from}, which would have to be told its new name: ${first.reason}`,
        );
      }
      // What has lost its base already does not name this one.
      for (const dependant of found.filter(({ lost }) => !lost)) standing.push(await open(dependant));
      await addName(from, to);
      await tellAll(standing, from, to);
      await removeName(from);
    } finally {
      below.release();
    }
  } finally {
    own.release();
    await Promise.all(standing.map(close));
  }
}

async function checkNames(from: string, to: string): Promise<void> {
  const relation = await relationOf(from, to);
  if (relation === 'one name') {
    throw new PcowError(
      'PCOW_EXISTS',
      `${path.basename(from)} and ${path.basename(to)} are one name in ${path.dirname(from)}, which ignores case: ` +
        'rename the image to another name first, and that one to this',
    );
  }
  // With two names an interrupted rename is finished.
  if (relation === 'apart' && (await isTaken(to))) {
    throw new PcowError('PCOW_EXISTS', `${from} can't be renamed: there is ${to} already`);
  }
}

/** All, or none: what was told is told the old name again. */
async function tellAll(standing: Standing[], from: string, to: string): Promise<void> {
  const told: Standing[] = [];
  try {
    for (const one of standing) {
      await one.image.moveBase({ path: to, layer: one.layer });
      told.push(one);
    }
  } catch (error) {
    for (const { image, layer } of told) await image.moveBase({ path: from, layer });
    await removeName(to);
    throw error;
  }
}
