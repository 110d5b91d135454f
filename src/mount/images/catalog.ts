/**
 * The images of a directory. Nothing is remembered that the directory could contradict: every
 * look-up checks the image file again. So images that appear, disappear or are replaced from
 * outside are noticed at once.
 */
import { realpath } from 'node:fs/promises';
import path from 'node:path';

import {
  type Dependant,
  howToName,
  imageFilesIn,
  type Image,
  PcowError,
  refuseWhereStoodOn,
  removeName,
  removeRemains,
  renameImage,
  type Standing,
  takingAway,
} from '../../engine/index.js';
import { word } from '../../engine/quote.js';
import { isSystemError, noSuchFile, refusal } from '../failure.js';
import { usersOf } from '../../engine/processes.js';
import {
  everyFile,
  fileStatus,
  type FileStatus,
  ImageEntry,
  leadsOutside,
  noRegularFile,
} from './image-entry.js';
import { checkNewImageName, imageFile, imageNameOf } from '../../images/image-names.js';
import { log } from '../log.js';
import { Mutex } from '../../engine/mutex.js';
import type { Opening } from './opening.js';
import { flatFilePath, type Place } from '../place.js';

export interface Found {
  entry: ImageEntry;
  status: FileStatus;
}

export class Catalog {
  /**
   * Held while image files are added, removed or renamed, because the relations between images and
   * their bases must not change meanwhile.
   */
  readonly structure = new Mutex();

  readonly #place: Place;
  readonly #entries = new Map<string, ImageEntry>();
  /** Files whose names cannot be shown, and which have been logged. */
  readonly #reported = new Set<string>();
  readonly #leaves: (entry: ImageEntry) => void;

  /** `leaves`: called when an image is gone, and before its name changes. */
  constructor(place: Place, leaves: (entry: ImageEntry) => void) {
    this.#place = place;
    this.#leaves = leaves;
  }

  /** The names of all images, sorted, including those that cannot be opened. */
  async names(): Promise<string[]> {
    const { directory } = this.#place;
    const { names, nameless } = await imageFilesIn(directory);
    for (const file of nameless) {
      if (this.#reported.has(file.shown)) continue;
      this.#reported.add(file.shown);
      log(`${file.shown} is not shown: ${howToName(directory, file)}`);
    }
    const images = names.map(imageNameOf).filter((name) => name !== null);
    await this.#forgetOthers(new Set(images));
    return images.sort();
  }

  /** Looks up the known images that are not `present`: those that are gone are forgotten. */
  async #forgetOthers(present: ReadonlySet<string>): Promise<void> {
    for (const name of [...this.#entries.keys()]) {
      // Other errors are reported when the image itself is accessed.
      if (!present.has(name)) await this.find(name).catch(() => undefined);
    }
  }

  async find(name: string): Promise<Found> {
    const file = imageFile(this.#place.directory, name);
    let status: FileStatus;
    try {
      status = await fileStatus(file);
    } catch (error) {
      if (isSystemError(error, 'ENOENT', 'ENOTDIR', 'ENAMETOOLONG')) {
        this.#forget(name);
        throw noSuchFile(name);
      }
      throw error;
    }
    const identity = `${status.device}:${status.inode}`;
    const known = this.#entries.get(name);
    if (known?.identity === identity) {
      return { entry: known, status };
    }
    const refused = await this.#refusal(name, file, status);
    // Another look-up may have been faster while this one waited.
    const meanwhile = this.#entries.get(name);
    if (meanwhile?.identity === identity) {
      return { entry: meanwhile, status };
    }
    this.#forget(name);
    const entry = new ImageEntry(this.#place, name, file, identity, refused);
    this.#entries.set(name, entry);
    return { entry, status };
  }

  /** An image that can be opened; others do not count as flat files. */
  async findSound(name: string): Promise<Found> {
    const found = await this.find(name);
    await found.entry.view();
    return found;
  }

  /**
   * Finds the same image again, whatever its name is now. Fails if its file is gone, or was
   * replaced.
   */
  async again(entry: ImageEntry): Promise<Found> {
    const found = await this.find(entry.name);
    if (found.entry !== entry) {
      throw refusal(
        'ENOENT',
        'PCOW_NOT_FOUND',
        `the image file of ${entry.name} has been replaced: open it again`,
      );
    }
    return found;
  }

  async #refusal(name: string, file: string, status: FileStatus): Promise<PcowError | null> {
    if (!status.regular) {
      return noRegularFile(name);
    }
    if (this.#place.settings.allowOutsideBase) {
      return null;
    }
    const real = await realpath(file);
    return real.startsWith(this.#place.directory + path.sep) ? null : leadsOutside(name);
  }

  #forget(name: string): void {
    const entry = this.#entries.get(name);
    if (!entry) return;
    this.#entries.delete(name);
    entry.retire();
    this.#leaves(entry);
  }

  /**
   * Deletes an image with all its contents, unless it is in use, or other images stand on it.
   * Called when "remove" is written.
   */
  async remove(name: string): Promise<void> {
    await this.#remove(name, () => Promise.resolve());
  }

  /**
   * `rm NAME`: deletes an image that holds nothing. Programs that replace a file (tar, mv, install)
   * unlink it first, and cannot make it again here. They would lose an image's data, and all its
   * snapshots.
   */
  async unlink(name: string): Promise<void> {
    await this.#remove(name, async (entry) => {
      const { image } = await entry.view();
      const what =
        image.snapshotNames().length > 0
          ? 'has snapshots'
          : (await isEmpty(image))
            ? null
            : 'holds data';
      if (what === null) return;
      throw refusal(
        'EPERM',
        'PCOW_PERMISSION',
        `${name} ${what}, and rm of its flat file does not delete it: use "pcow rm", ` +
          `or write ${name} to ${word(`.pcow/${name}/remove`)}. To replace its contents, write to the flat file (cp, dd)`,
      );
    });
  }

  /**
   * `check` is called when no process can change the image any more; it throws if the image must
   * stay.
   */
  async #remove(name: string, check: (entry: ImageEntry) => Promise<void>): Promise<void> {
    await this.structure.run(async () => {
      const { entry } = await this.findSound(name);
      const what = `${name} can't be removed`;
      // Report first which images stand on it, even if it is in use.
      await refuseWhereStoodOn({ file: entry.file, what });
      await this.#unused(entry, 'removed', () =>
        takingAway({ file: entry.file, what }, async () => {
          await check(entry);
          await removeName(entry.file);
          await entry.shutDown();
          this.#forget(name);
          await this.removeRemains();
          log(`${name}: removed`);
        }),
      );
    });
  }

  /** Removes what killed commands have left in the directory. */
  async removeRemains(): Promise<void> {
    if (this.#place.settings.readOnly) return;
    for (const file of await removeRemains(this.#place.directory))
      log(`removed ${file}, which a killed command left`);
  }

  /**
   * `mv NAME TARGET`: renames the image file, unless it is in use. The images that stand on it are
   * updated.
   */
  async rename(name: string, target: string): Promise<void> {
    await this.structure.run(async () => {
      const { entry } = await this.findSound(name);
      checkNewImageName(target);
      const file = imageFile(this.#place.directory, target);
      if (await exists(file)) {
        throw new PcowError(
          'PCOW_EXISTS',
          `${name} can't be renamed: there is a ${target} already; remove it first`,
        );
      }
      await this.#unused(entry, 'renamed', async () => {
        await entry.shutDown();
        const used = new Map<Standing, Opening>();
        await renameImage(entry.file, file, {
          open: async (dependant) => {
            const opening = await this.#openDependant(dependant);
            // The opening stays with this mount afterwards, but not because of this rename.
            opening.use();
            const standing = { image: opening.image, layer: dependant.layer };
            used.set(standing, opening);
            return standing;
          },
          close: (standing) => {
            used.get(standing)?.release();
            return Promise.resolve();
          },
        });
        this.#leaves(entry);
        this.#entries.delete(name);
        this.#entries.set(target, entry);
        entry.name = target;
        entry.file = file;
        log(`${name}: renamed to ${target}`);
      });
    });
  }

  /** Fails if another process writes the image. */
  async #openDependant({ image }: Dependant): Promise<Opening> {
    const name = imageNameOf(path.basename(image));
    if (name === null)
      throw new PcowError(
        'PCOW_IN_USE',
        `${image} stands on it, and this mount does not show that image`,
      );
    const child = await this.findSound(name);
    return child.entry.writer();
  }

  /** Runs `work` on an image that nothing else uses, and whose lock this mount has. */
  async #unused(entry: ImageEntry, done: string, work: () => Promise<void>): Promise<void> {
    await entry.commands.run(async () => {
      await entry.writer();
      await entry.exclusively(everyFile, () => this.inUse(entry, done), work);
    });
  }

  /**
   * The error for a command that an open flat file forbids. It names the processes that have the
   * file open.
   */
  async inUse(entry: ImageEntry, done: string): Promise<PcowError> {
    const users = await usersOf(flatFilePath(this.#place, entry.name));
    const who =
      users.length > 0
        ? users.join(', ')
        : 'a process that this mount cannot see (or a loop device)';
    return new PcowError(
      'PCOW_BUSY',
      `${entry.name} can't be ${done} while it is open by ${who}: let that end first`,
    );
  }

  /** The images that the mount knows now, without reading the directory. */
  get known(): ImageEntry[] {
    return [...this.#entries.values()];
  }

  /** Syncs and closes all images. Returns what went wrong. */
  async shutDown(): Promise<{ image: string; error: unknown }[]> {
    const failures: { image: string; error: unknown }[] = [];
    for (const entry of this.known) {
      try {
        await entry.shutDown();
      } catch (error) {
        failures.push({ image: entry.name, error });
      }
    }
    return failures;
  }
}

/** Whether the image's active layer holds nothing. */
async function isEmpty(image: Image): Promise<boolean> {
  for await (const { kind } of image.map({ depths: { first: 0, end: 1 } })) {
    if (kind !== 'hole') return false;
  }
  return true;
}

async function exists(file: string): Promise<boolean> {
  try {
    await fileStatus(file);
    return true;
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) {
      return false;
    }
    throw error;
  }
}
