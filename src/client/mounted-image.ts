/**
 * An image in a mount, which is the one writer of its directory: asked to change it by its control files (docs/control-files.md). Never use
 * one from the process that serves the mount, which would wait for itself.
 */
import { readFile, realpath } from 'node:fs/promises';
import path from 'node:path';
import { asking, mustAnswerOnTheWay } from '../images/mount-answers.js';
import type { ImageControl } from '../images/control-names.js';
import { type LongOptions, PcowError } from '../engine/index.js';
import { IMAGE_SUFFIX } from '../images/image-names.js';
import { mountHolding, mountsOfDirectory, type PcowMount } from '../images/mount-table.js';
import { askForCut, askForRename, askForWork, askImage } from './control.js';
import { controlDirectory, type MountedStatus } from './mount-status.js';

/** Which part of a base an image is to stand on. */
export interface MountedBase {
  /** The name of an image of the same mount. */
  image: string;
  /** Left out: as that image is now. */
  snapshot?: string | undefined;
}

/** An image in a mount. What fails rejects with the PcowError that the mount tells. */
export class MountedImage {
  private constructor(
    /** Where it is mounted. */
    readonly mount: PcowMount,
    /** What the mount calls it. */
    readonly name: string,
  ) {}

  /** By its flat file, or by its image file in a directory that is mounted. Errors: PCOW_NOT_FOUND, PCOW_MOUNT. */
  static async find(file: string): Promise<MountedImage> {
    await mustAnswerOnTheWay(file);
    const real = await realpath(file).catch((cause: unknown) => {
      throw new PcowError('PCOW_NOT_FOUND', `there is no image ${JSON.stringify(file)}`, { cause });
    });
    const held = await mountHolding(real);
    if (held !== null && held.inside !== '' && !held.inside.includes('/'))
      return new MountedImage(held.mount, held.inside);
    const [mount] = held === null && real.endsWith(IMAGE_SUFFIX) ? await mountsOfDirectory(path.dirname(real)) : [];
    if (mount === undefined) throw new PcowError('PCOW_MOUNT', `${JSON.stringify(file)} is no image of a mount`);
    return new MountedImage(mount, path.basename(real, IMAGE_SUFFIX));
  }

  /** What a virtual machine maps. */
  get flatFile(): string {
    return path.join(this.mount.mountpoint, this.name);
  }

  /** What the mount says of it. */
  async status(): Promise<MountedStatus> {
    const file = path.join(controlDirectory(this.mount, this.name), 'status');
    return JSON.parse(await asking(this.mount, () => readFile(file, 'utf8'))) as MountedStatus;
  }

  /** Freezes what it holds now under a name, also while a guest runs. Durable when it resolves. */
  snapshot(name: string): Promise<void> {
    return this.#ask('snapshot', name);
  }

  /** Goes back to a snapshot; nobody may have it open for writing. */
  rollback(name: string): Promise<void> {
    return this.#ask('rollback', name);
  }

  /** Gives a snapshot another name. Images that stand on it go on doing so; nobody may have its file open. */
  renameSnapshot(name: string, newName: string): Promise<void> {
    return this.#ask('rename', words(name, newName));
  }

  /** Deletes a snapshot that no image stands on. */
  delete(name: string, options: LongOptions = {}): Promise<void> {
    return this.#work('delete', name, options);
  }

  /** Makes a new image of the same directory that stands on this one, as it is now or at a snapshot. */
  async clone(newName: string, snapshot?: string): Promise<MountedImage> {
    await this.#ask('clone', words(newName, snapshot));
    return new MountedImage(this.mount, newName);
  }

  /** Makes it larger, or smaller where `shrink` says that what lies behind the end may go. */
  resize(size: number, { shrink = false }: { shrink?: boolean | undefined } = {}): Promise<void> {
    return this.#ask('resize', shrink ? `${size} shrink` : String(size));
  }

  /** Puts it on another base of the same mount; its content stays. */
  rebase(base: MountedBase, options: LongOptions = {}): Promise<void> {
    return this.#work('rebase', words(base.image, base.snapshot), options);
  }

  /** Copies everything from the base; it stands on nothing then. */
  flatten(options: LongOptions = {}): Promise<void> {
    return this.#work('flatten', 'now', options);
  }

  /** Moves what was written into the base, as its new snapshot of this name. */
  commit(name: string, options: LongOptions = {}): Promise<void> {
    return this.#work('commit', name, options);
  }

  /** Gives blocks of zeros back to the file system. */
  compact(options: LongOptions = {}): Promise<void> {
    return this.#work('compact', 'now', options);
  }

  /** Gives it another name in its directory. */
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

/** One snapshot of several images of one mount, which is one cut across them. */
export async function snapshotMountedTogether(name: string, images: readonly MountedImage[]): Promise<void> {
  const [first] = images;
  if (first === undefined || images.some(({ mount }) => mount.mountpoint !== first.mount.mountpoint)) {
    throw new PcowError('PCOW_INVALID', 'a snapshot across images needs images, and of one mount');
  }
  await askForCut(
    first.mount,
    name,
    images.map((image) => image.name),
  );
}

function words(first: string, second: string | undefined): string {
  return second === undefined ? first : `${first} ${second}`;
}
