/**
 * An image in a mount. The mount is the only writer of its directory, and changes the image when
 * its control files are written (docs/control-files.md). Never use this in the process that serves
 * the mount, which would wait for itself.
 */
import { readFile, realpath } from 'node:fs/promises';
import path from 'node:path';
import { asking, mustAnswerOnTheWay } from '../images/mount-answers.js';
import type { ImageControl } from '../images/control-names.js';
import { type LongOptions, PcowError } from '../engine/index.js';
import { IMAGE_SUFFIX } from '../images/image-names.js';
import { mountHolding, mountsOfDirectory, type PcowMount } from '../images/mount-table.js';
import { askForCut, askForRename, askForWork, askImage, joinWords } from './control.js';
import { controlDirectory, type MountedStatus } from './mount-status.js';

/** The image, and its snapshot, on which another image will stand. */
export interface MountedBase {
  /** The name of an image of the same mount. */
  image: string;
  /** Default: that image as it is now. */
  snapshot?: string | undefined;
}

/** An image in a mount. Errors reject with the PcowError that the mount reports. */
export class MountedImage {
  private constructor(
    /** The mount that contains it. */
    readonly mount: PcowMount,
    /** Its name in the mount. */
    readonly name: string,
  ) {}

  /**
   * Finds an image by its flat file, or by its image file in a mounted directory. Errors:
   * PCOW_NOT_FOUND, PCOW_MOUNT.
   */
  static async find(file: string): Promise<MountedImage> {
    await mustAnswerOnTheWay(file);
    const real = await realpath(file).catch((cause: unknown) => {
      throw new PcowError('PCOW_NOT_FOUND', `there is no image ${JSON.stringify(file)}`, { cause });
    });
    const held = await mountHolding(real);
    if (held !== null && held.inside !== '' && !held.inside.includes('/'))
      return new MountedImage(held.mount, held.inside);
    const [mount] =
      held === null && real.endsWith(IMAGE_SUFFIX)
        ? await mountsOfDirectory(path.dirname(real))
        : [];
    if (mount === undefined)
      throw new PcowError('PCOW_MOUNT', `${JSON.stringify(file)} is not an image in a mount`);
    return new MountedImage(mount, path.basename(real, IMAGE_SUFFIX));
  }

  /** The file that a virtual machine maps. */
  get flatFile(): string {
    return path.join(this.mount.mountpoint, this.name);
  }

  /** The mount's status of the image. */
  async status(): Promise<MountedStatus> {
    const file = path.join(controlDirectory(this.mount, this.name), 'status');
    return JSON.parse(await asking(this.mount, () => readFile(file, 'utf8'))) as MountedStatus;
  }

  /** Takes a snapshot, also while a guest runs. It is durable when the promise resolves. */
  snapshot(name: string): Promise<void> {
    return this.#ask('snapshot', name);
  }

  /** Goes back to a snapshot. No process may have the flat file open. */
  rollback(name: string): Promise<void> {
    return this.#ask('rollback', name);
  }

  /**
   * Renames a snapshot. Images that stand on it continue to do so. No process may have the
   * snapshot's file open.
   */
  renameSnapshot(name: string, newName: string): Promise<void> {
    return this.#ask('rename', joinWords(name, newName));
  }

  /** Deletes a snapshot on which no image stands. */
  delete(name: string, options: LongOptions = {}): Promise<void> {
    return this.#work('delete', name, options);
  }

  /**
   * Makes a new image in the same directory that stands on this one, as it is now or at a snapshot.
   */
  async clone(newName: string, snapshot?: string): Promise<MountedImage> {
    await this.#ask('clone', joinWords(newName, snapshot));
    return new MountedImage(this.mount, newName);
  }

  /** Makes it larger; with `shrink`, makes it smaller, and drops what is behind the new end. */
  resize(size: number, { shrink = false }: { shrink?: boolean | undefined } = {}): Promise<void> {
    return this.#ask('resize', shrink ? `${size} shrink` : String(size));
  }

  /** Puts it on another base in the same mount. Its content stays. */
  rebase(base: MountedBase, options: LongOptions = {}): Promise<void> {
    return this.#work('rebase', joinWords(base.image, base.snapshot), options);
  }

  /** Copies everything from the base. Afterwards it stands on no base. */
  flatten(options: LongOptions = {}): Promise<void> {
    return this.#work('flatten', 'now', options);
  }

  /**
   * Moves what the image has written into the base, as a new snapshot of the base with this name.
   */
  commit(name: string, options: LongOptions = {}): Promise<void> {
    return this.#work('commit', name, options);
  }

  /** Gives blocks that hold only zeros back to the filesystem. */
  compact(options: LongOptions = {}): Promise<void> {
    return this.#work('compact', 'now', options);
  }

  /** Renames the image in its directory. */
  async rename(newName: string): Promise<MountedImage> {
    await askForRename(this.mount, this.name, newName);
    return new MountedImage(this.mount, newName);
  }

  /** Deletes the image, with its snapshots. */
  remove(): Promise<void> {
    return this.#ask('remove', this.name);
  }

  #ask(control: ImageControl, text: string): Promise<void> {
    return askImage(this.mount, this.name, control, text);
  }

  #work(control: ImageControl, text: string, options: LongOptions): Promise<void> {
    return askForWork(this.mount, this.name, control, text, options);
  }
}

/** Takes one snapshot of several images of one mount, which is one cut across them. */
export async function snapshotMountedTogether(
  name: string,
  images: readonly MountedImage[],
): Promise<void> {
  const [first] = images;
  if (
    first === undefined ||
    images.some(({ mount }) => mount.mountpoint !== first.mount.mountpoint)
  ) {
    throw new PcowError(
      'PCOW_INVALID',
      'a snapshot of several images needs images that are all in one mount',
    );
  }
  await askForCut(
    first.mount,
    name,
    images.map((image) => image.name),
  );
}
