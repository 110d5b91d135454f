/**
 * An image in a mount, which is the one writer of its directory: asked to change it by its control files (docs/control-files.md). Never use
 * one from the process that serves the mount, which would wait for itself.
 */
import { constants } from 'node:fs';
import { open, readFile, realpath, rename } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getSystemErrorName } from 'node:util';
import { codeOfErrno, isPcowError, type LongOptions, PcowError, type PcowErrorCode } from './engine/index.js';
import { IMAGE_SUFFIX } from './mount/image-names.js';
import { mountHolding, mountsOfDirectory, type PcowMount } from './mounts.js';

const CONTROL = '.pcow';

/** Milliseconds between two looks at how far the mount is. */
const LOOK = 100;

/** What `.pcow/NAME/status` says, as far as it is the same for every image; docs/control-files.md has all of it. */
export interface MountedStatus {
  /** "ok", or what is wrong with the image. */
  state: string;
  /** A sentence, where the state is not "ok". */
  problem: string | null;
  /** What the mount is doing to the image at somebody's request. */
  working?: {
    /** The control file. */
    command: string;
    /** What was written to it. */
    text: string;
    /** Bytes. */
    done: number;
    /** Bytes; 0 until it is known. */
    total: number;
  } | null;
  /** Of the last command, read or write that failed. */
  lastError: {
    /** As that of a PcowError. */
    code: PcowErrorCode;
    /** Its name, for example "EBUSY". */
    errno: string;
    /** A sentence. */
    message: string;
  } | null;
  /** The rest. */
  [field: string]: unknown;
}

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

  /** The path of one of its control files. */
  #control(file: string): string {
    return path.join(this.mount.mountpoint, CONTROL, this.name, file);
  }

  /** What the mount says of it. */
  async status(): Promise<MountedStatus> {
    return JSON.parse(await readFile(this.#control('status'), 'utf8')) as MountedStatus;
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
    const renamed = new MountedImage(this.mount, newName);
    await rename(this.flatFile, renamed.flatFile).catch(async (error: unknown) => {
      throw await explained(error, this.#control('status'), `${this.name}: its new name ${newName}`);
    });
    return renamed;
  }

  /** Deletes the image, with its snapshots. */
  remove(): Promise<void> {
    return this.#ask('remove', this.name);
  }

  #ask(control: string, text: string): Promise<void> {
    return write(this.#control(control), text, this.#control('status'), `${this.name}: ${control} ${text}`);
  }

  async #work(control: string, text: string, { signal, onProgress }: LongOptions): Promise<void> {
    if (signal?.aborted) {
      throw new PcowError('PCOW_CANCELLED', `${this.name}: ${control} was stopped before it began`, {
        cause: signal.reason,
      });
    }
    const cancel = () => {
      // What can't be stopped any more goes on, and is told as done.
      this.#ask('cancel', `${control} ${text}`).catch(() => undefined);
    };
    let over = false;
    const asked = this.#ask(control, text).finally(() => {
      over = true;
    });
    asked.catch(() => undefined); // told below
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      while (!over && onProgress !== undefined) {
        await Promise.race([asked, sleep(LOOK)]);
        const { working } = await this.status();
        if (working?.command === control && working.text === text) onProgress(working.done, working.total);
      }
      await asked;
    } catch (error) {
      throw signal?.aborted && isPcowError(error, 'PCOW_CANCELLED')
        ? new PcowError(error.code, error.message, { cause: signal.reason })
        : error;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }
}

/** One snapshot of several images of one mount, which is one cut across them. */
export async function snapshotMountedTogether(name: string, images: readonly MountedImage[]): Promise<void> {
  const [first] = images;
  if (first === undefined || images.some(({ mount }) => mount.mountpoint !== first.mount.mountpoint)) {
    throw new PcowError('PCOW_INVALID', 'a snapshot across images needs images, and of one mount');
  }
  const directory = path.join(first.mount.mountpoint, CONTROL);
  const text = [name, ...images.map((image) => image.name)].join(' ');
  await write(path.join(directory, 'snapshot'), text, path.join(directory, 'status'), `snapshot ${text}`);
}

function words(first: string, second: string | undefined): string {
  return second === undefined ? first : `${first} ${second}`;
}

/** Never O_TRUNC, and one write(2): the mount takes each as a command of its own. */
async function write(file: string, text: string, status: string, what: string): Promise<void> {
  try {
    const handle = await open(file, constants.O_WRONLY);
    try {
      await handle.write(`${text}\n`);
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw await explained(error, status, what);
  }
}

/** The sentence that goes with an errno is in the status. */
async function explained(error: unknown, status: string, what: string): Promise<unknown> {
  if (!(error instanceof Error) || !('errno' in error) || typeof error.errno !== 'number') return error;
  const errno = getSystemErrorName(error.errno);
  const said = await readFile(status, 'utf8').then(
    (text) => JSON.parse(text) as MountedStatus,
    () => null,
  );
  const { lastError = null } = said ?? {};
  if (lastError?.errno === errno) return new PcowError(lastError.code, lastError.message, { cause: error });
  return new PcowError(
    codeOfErrno(-error.errno) ?? 'PCOW_IO',
    said?.problem ?? `the mount refused “${what}” (${errno})`,
    {
      errno: -error.errno,
      cause: error,
    },
  );
}
