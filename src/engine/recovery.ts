/** Makes durable what a killed writer has left in the page cache: docs/durability.md. */
import path from 'node:path';

import { isPcowError, PcowError, translated } from './errors.js';
import { howToName, imageFilesIn } from './image-files.js';
import { addon } from './native.js';
import { checkPath } from './validate.js';

/**
 * `nothing`: the image is clean, or the page cache is gone. `in use`: a process has it open for
 * writing, or is recovering it.
 */
export type Recovery = 'nothing' | 'recovered' | 'in use';

/** The results for the images of a directory, each by its path. */
export interface DirectoryRecovery {
  /** Images of which something was made durable. */
  recovered: string[];
  /** Images that another process has open for writing, or recovers. */
  inUse: string[];
  /** Images that could not be recovered. */
  failed: {
    /** The path of the image. */
    image: string;
    /** Usually a PcowError. */
    error: unknown;
  }[];
}

/**
 * Makes durable what a killed writer of the image has left unsynced, so that a restart of the host
 * loses nothing of it. The image's base is not touched.
 */
export async function recoverImage(file: string): Promise<Recovery> {
  checkPath('the path of the image', file);
  return translated(() => addon().recover(file));
}

/**
 * The same for each `*.pcow` in a directory. Files that are not images, or disappear meanwhile, are
 * skipped.
 */
export async function recoverDirectory(directory: string): Promise<DirectoryRecovery> {
  checkPath('the directory', directory);
  const outcome: DirectoryRecovery = { recovered: [], inUse: [], failed: [] };
  const { names, nameless } = await imageFilesIn(directory);
  for (const file of nameless) {
    const image = path.join(directory, file.shown);
    const error = new PcowError(
      'PCOW_INVALID',
      `${image} can't be recovered: ${howToName(directory, file)}`,
    );
    outcome.failed.push({ image, error });
  }
  for (const name of names) {
    const image = path.join(directory, name);
    try {
      const done = await recoverImage(image);
      if (done === 'recovered') outcome.recovered.push(image);
      if (done === 'in use') outcome.inUse.push(image);
    } catch (error) {
      if (!isPcowError(error, 'PCOW_NOT_AN_IMAGE', 'PCOW_NOT_FOUND'))
        outcome.failed.push({ image, error });
    }
  }
  return outcome;
}
