/** Renames an image file, and updates the images that stand on it. */
import path from 'node:path';

import { basePathOf, type Dependant, survey } from './dependants.js';
import { PcowError } from './errors.js';
import { lockStanding, noLock } from './file-lock.js';
import type { Image } from './image.js';
import { addName, isTaken, relationOf, removeName } from './names.js';

/** An image that stands on the renamed image, open for writing. */
export interface Standing {
  image: Image;
  /** The id of the layer on which it stands. */
  layer: number;
}

/**
 * Renames an image file within its directory. `open` opens an image that stands on it for writing;
 * `close` is called for each of these images at the end.
 *
 * First the file gets the second name, then every image that stands on it is updated to the new
 * name, then the old name is removed. Each step is durable before the next begins. So if a process
 * or the host ends in between, every base is found, and the same call again finishes the rename.
 * Meanwhile no image can be made to stand on the old name, and a search for the images that stand
 * on the file's own base finds the file under at least one name.
 */
export async function renameImage(
  from: string,
  to: string,
  {
    open,
    close,
  }: {
    open: (dependant: Dependant) => Promise<Standing>;
    close: (standing: Standing) => Promise<void>;
  },
): Promise<void> {
  await checkNames(from, to);
  const own = await lockStanding(from, 'exclusive');
  const standing: Standing[] = [];
  try {
    const base = await basePathOf(from);
    const below =
      base !== null && (await isTaken(base)) ? await lockStanding(base, 'shared') : noLock;
    try {
      const { standing: found, unclear } = await survey(path.dirname(from), from);
      const [first] = unclear;
      if (first !== undefined) {
        throw new PcowError(
          'PCOW_BUSY',
          `cannot tell whether ${first.image} stands on ${from} and needs its new name: ${first.reason}`,
        );
      }
      // Images that had already lost their base do not refer to this name.
      for (const dependant of found.filter(({ lost }) => !lost))
        standing.push(await open(dependant));
      await addName(from, to);
      await updateAll(standing, from, to);
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
      `${path.basename(from)} and ${path.basename(to)} are the same name in ${path.dirname(from)}, which ignores case: ` +
        'rename the image to a different name first, and then to this one',
    );
  }
  // If both are names of one file, an interrupted rename is finished.
  if (relation === 'apart' && (await isTaken(to))) {
    throw new PcowError('PCOW_EXISTS', `${from} can't be renamed: ${to} exists already`);
  }
}

/** Updates all images, or none: after a failure, those that were updated get the old name again. */
async function updateAll(standing: Standing[], from: string, to: string): Promise<void> {
  const updated: Standing[] = [];
  try {
    for (const one of standing) {
      await one.image.moveBase({ path: to, layer: one.layer });
      updated.push(one);
    }
  } catch (error) {
    for (const { image, layer } of updated) await image.moveBase({ path: from, layer });
    await removeName(to);
    throw error;
  }
}
