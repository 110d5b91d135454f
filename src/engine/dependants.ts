/**
 * Finds the images of a directory that stand directly on an image. This must be checked before the
 * image, or a snapshot of it, is removed.
 */
import { lstat, open, realpath, stat } from 'node:fs/promises';
import path from 'node:path';

import { isPcowError, PcowError, translated } from './errors.js';
import { lockStanding } from './file-lock.js';
import { imageFilesIn, type NamelessFile } from './image-files.js';
import { isMissing } from './names.js';
import { addon, type NativeIdentity } from './native.js';
import { checkPath } from './validate.js';

/** An image that stands on another. */
export interface Dependant {
  /** The path of the image that stands on the given one. */
  image: string;
  /** The id of the layer on which it stands. */
  layer: number;
}

/** A dependant with the way it was found. */
export interface FoundDependant extends Dependant {
  /** The path of its base leads elsewhere, or nowhere; but it was made on this image. */
  lost: boolean;
}

/** The result of searching a directory. */
export interface Survey {
  standing: FoundDependant[];
  /** Files that could not be checked, and why. */
  unclear: { image: string; reason: string }[];
}

/**
 * The images `*.pcow` in `directory` that stand on the image file at `path`, whatever else is wrong
 * with them or with the chain below them. Files that are not images are skipped. Fails with
 * PCOW_BUSY if a file cannot be checked (it may not be read, or both its superblocks are damaged),
 * because it might lose its base.
 */
export async function dependants(directory: string, imagePath: string): Promise<Dependant[]> {
  const { standing, unclear } = await survey(directory, imagePath);
  refuseUnclear(unclear, imagePath);
  return standing.map(({ image, layer }) => ({ image, layer }));
}

/** The same, together with the files that could not be checked. */
export async function survey(directory: string, imagePath: string): Promise<Survey> {
  checkPath('the directory', directory);
  checkPath('the path of the image', imagePath);
  const found: Survey = { standing: [], unclear: [] };
  const self = await identity(imagePath);
  if (self === null) return found;
  const own = await identify(imagePath).catch(() => null);
  const { names, nameless } = await imageFilesIn(directory);
  for (const file of nameless) await surveyNameless(directory, file, self, own, found);
  for (const name of names) {
    const image = path.join(directory, name);
    if ((await identity(image)) === self) continue;
    try {
      const dependant = await standsOn(image, self, own);
      if (dependant !== null) found.standing.push(dependant);
    } catch (error) {
      found.unclear.push({ image, reason: error instanceof Error ? error.message : String(error) });
    }
  }
  return found;
}

/** A file that can be opened only by the bytes of its name. */
async function surveyNameless(
  directory: string,
  { name, shown }: NamelessFile,
  self: string,
  own: NativeIdentity | null,
  found: Survey,
): Promise<void> {
  const image = path.join(directory, shown);
  try {
    const handle = await open(Buffer.concat([Buffer.from(`${directory}/`), name]));
    try {
      const there = `/proc/self/fd/${handle.fd}`;
      const dependant = (await identity(there)) === self ? null : await standsOn(there, self, own);
      if (dependant !== null) found.standing.push({ ...dependant, image });
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (!isMissing(error))
      found.unclear.push({ image, reason: error instanceof Error ? error.message : String(error) });
  }
}

/** What will be removed from an image. */
export interface Taking {
  /** The image file. */
  file: string;
  /** The beginning of the refusal, for example “vm1@one can't be deleted”. */
  what: string;
  /** The layer that will be removed; default: all layers. */
  layer?: number | undefined;
}

/**
 * Runs work that removes an image or a layer of it, if no image of its directory stands on that;
 * otherwise fails with PCOW_IN_USE. From the check until the end of the work, no image can be made
 * to stand on it. When the work ends, it must be durable.
 */
export async function takingAway<T>(
  { file, what, layer }: Taking,
  work: () => Promise<T>,
): Promise<T> {
  const lock = await lockStanding(file, 'exclusive');
  try {
    await refuseWhereStoodOn({ file, what, layer });
    return await work();
  } finally {
    lock.release();
  }
}

/** Fails as takingAway() does. Without its lock, the result is valid for this moment only. */
export async function refuseWhereStoodOn({ file, what, layer }: Taking): Promise<void> {
  const homes = new Set([await realpath(path.dirname(file)), path.dirname(await realpath(file))]);
  for (const home of homes) {
    const { standing, unclear } = await survey(home, file);
    const harmed = standing.filter((one) => layer === undefined || one.layer === layer);
    if (harmed.length > 0) throw new PcowError('PCOW_IN_USE', `${what}: ${saidOf(harmed)}`);
    refuseUnclear(unclear, file);
  }
}

/** For messages: “vm1.pcow stands on it”, “vm1.pcow, vm2.pcow stand on it”. */
export function saidOf(standing: Dependant[]): string {
  const names = standing.map(({ image }) => path.basename(image)).join(', ');
  return `${names} ${standing.length === 1 ? 'stands' : 'stand'} on it`;
}

function refuseUnclear([first]: Survey['unclear'], imagePath: string): void {
  if (first === undefined) return;
  throw new PcowError(
    'PCOW_BUSY',
    `cannot tell whether ${first.image} stands on ${imagePath}: ${first.reason}; ` +
      'repair it (“pcow check --repair”), or move the file out of the directory',
  );
}

/** Device and inode, which are the same for every path of a file. null if there is no file. */
async function identity(file: string): Promise<string | null> {
  try {
    const { dev, ino } = await stat(file, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/**
 * The identity of an image and of its base. Reads the superblock only, so that damage elsewhere
 * does not matter.
 */
export function identify(file: string): Promise<NativeIdentity> {
  return translated(() => addon().identify(file));
}

/**
 * The path of an image's base, as stored in the image: it need not exist. null: it stands on no
 * base.
 */
export async function basePathOf(image: string): Promise<string | null> {
  const { base } = await identify(image);
  return base && path.resolve(path.dirname(await realpath(image)), base.path);
}

/**
 * `self` and `own`: of the image that is asked about; `own` is null if its superblocks are damaged.
 */
async function standsOn(
  image: string,
  self: string,
  own: NativeIdentity | null,
): Promise<FoundDependant | null> {
  let base: NativeIdentity['base'];
  try {
    ({ base } = await identify(image));
  } catch (error) {
    if (isPcowError(error, 'PCOW_NOT_AN_IMAGE')) return null;
    // It was removed meanwhile; but a symbolic link may lead to a filesystem that is not mounted at
    // present.
    if (isPcowError(error, 'PCOW_NOT_FOUND') && !(await isThere(image))) return null;
    throw error;
  }
  if (base === null) return null;
  const basePath = path.resolve(path.dirname(await realpath(image)), base.path);
  const leadsHere = (await identity(basePath)) === self;
  const isOurs = own === null || base.uuid === own.uuid;
  if (leadsHere) return isOurs ? { image, layer: base.layer, lost: false } : null;
  if (own === null || !isOurs) return null;
  // The path leads elsewhere. If the right base is there, `self` is a copy of it; otherwise `self`
  // is the base, under another name now.
  const present = await identify(basePath).catch(() => null);
  return present?.uuid === base.uuid ? null : { image, layer: base.layer, lost: true };
}

async function isThere(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    () => false,
  );
}
