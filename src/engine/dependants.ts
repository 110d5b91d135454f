/** Which images of a directory stand directly on an image: what must be asked before it, or a snapshot of it, goes. */
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
  /** The id of the layer that it stands on. */
  layer: number;
}

/** As it is found. */
export interface FoundDependant extends Dependant {
  /** The path that it names leads elsewhere, or nowhere; but this is the image that it was made on. */
  lost: boolean;
}

/** What looking through a directory has told. */
export interface Survey {
  standing: FoundDependant[];
  /** Files of which it cannot be told, and why. */
  unclear: { image: string; reason: string }[];
}

/**
 * The images `*.pcow` in `directory` that stand on the image file at `path`, whatever else is wrong with them or with the chain below
 * them. Files that are no images are passed over. Fails with PCOW_BUSY where it can't be told of a file (it may not be read, both its
 * superblocks are damaged): better to refuse than to pull a base from under it.
 */
export async function dependants(directory: string, imagePath: string): Promise<Dependant[]> {
  const { standing, unclear } = await survey(directory, imagePath);
  refuseUnclear(unclear, imagePath);
  return standing.map(({ image, layer }) => ({ image, layer }));
}

/** The same, with what can't be told. */
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

/** A file that can be reached by a descriptor alone. */
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

/** What is to be taken away of an image. */
export interface Taking {
  /** The image file. */
  file: string;
  /** Begins the sentence of a refusal, such as “vm1@one can't be deleted”. */
  what: string;
  /** The layer that goes; left out: all of them. */
  layer?: number | undefined;
}

/**
 * Runs work that takes an image away, or a layer of it, where no image of its directory stands on that; else fails with PCOW_IN_USE.
 * Nobody comes to stand on the image between the look and the end of the work, which must be durable then.
 */
export async function takingAway<T>({ file, what, layer }: Taking, work: () => Promise<T>): Promise<T> {
  const lock = await lockStanding(file, 'exclusive');
  try {
    await refuseWhereStoodOn({ file, what, layer });
    return await work();
  } finally {
    lock.release();
  }
}

/** Fails as takingAway() does. Without its lock this holds for the moment only. */
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
    `can't tell whether ${first.image} stands on ${imagePath}: ${first.reason}; ` +
      'mend that (“pcow check --repair” tries), or move the file out of the directory',
  );
}

/** Device and inode: equal for every path of one file. null where there is none. */
async function identity(file: string): Promise<string | null> {
  try {
    const { dev, ino } = await stat(file, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/** What an image says of itself and its base: by its superblock alone, so that damage elsewhere does not hide it. */
export function identify(file: string): Promise<NativeIdentity> {
  return translated(() => addon().identify(file));
}

/** Where the base of an image is, as the image names it: it need not be there. null: it stands on nothing. */
export async function basePathOf(image: string): Promise<string | null> {
  const { base } = await identify(image);
  return base && path.resolve(path.dirname(await realpath(image)), base.path);
}

/** `self` and `own`: of the image that is asked about; `own` is null where its superblocks are damaged. */
async function standsOn(image: string, self: string, own: NativeIdentity | null): Promise<FoundDependant | null> {
  let base: NativeIdentity['base'];
  try {
    ({ base } = await identify(image));
  } catch (error) {
    if (isPcowError(error, 'PCOW_NOT_AN_IMAGE')) return null;
    // It went away meanwhile; but a symbolic link may lead to where something is not mounted just now.
    if (isPcowError(error, 'PCOW_NOT_FOUND') && !(await isThere(image))) return null;
    throw error;
  }
  if (base === null) return null;
  const place = path.resolve(path.dirname(await realpath(image)), base.path);
  const leadsHere = (await identity(place)) === self;
  const isOurs = own === null || base.uuid === own.uuid;
  if (leadsHere) return isOurs ? { image, layer: base.layer, lost: false } : null;
  if (own === null || !isOurs) return null;
  // The image that it was made on, under another name now; or a copy of it, where the right one is in its place.
  const inPlace = await identify(place).catch(() => null);
  return inPlace?.uuid === base.uuid ? null : { image, layer: base.layer, lost: true };
}

async function isThere(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    () => false,
  );
}
