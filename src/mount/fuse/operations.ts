/**
 * The filesystem operations of a mount. Each finds the node of a path, or the open file of a
 * handle, which does the rest.
 */
import { constants } from 'node:fs';
import { chmod, chown, statfs, utimes } from 'node:fs/promises';

import { isPcowError, PcowError } from '../../engine/index.js';
import type { Question, QuestionAnswer } from '../../engine/native-operations.js';
import type { Attributes } from './attributes.js';
import type { MountContext } from '../context.js';
import { errnoOf, refusal } from '../failure.js';
import { guarded, type Operations } from './session.js';
import { neededBy } from '../daemon/hand-over.js';
import { belongsToMount, type Node, type OpenFile } from '../nodes/node.js';
import { OpenFlatFile } from '../nodes/open-flat-file.js';
import { resolve } from '../nodes/resolve.js';

export class FileSystem {
  readonly #context: MountContext;
  #commandsInProgress = 0;

  constructor(context: MountContext) {
    this.#context = context;
  }

  /** Whether a process depends on this mount, or a command is in progress. */
  get needed(): boolean {
    return this.#commandsInProgress > 0 || neededBy(this.#context.files.flatFiles);
  }

  get operations(): Operations {
    return { ...this.#onPaths(), ...this.#onOpenFiles(), ...this.#refused() };
  }

  #onPaths(): Operations {
    const getattr = guarded(
      'getattr',
      async (path: string) => (await this.#node(path)).attributes(),
      value,
    );
    return {
      getattr,
      fgetattr: getattr,
      readdir: guarded(
        'readdir',
        (path: string) => this.#readdir(path),
        (answer, { names, attributes }) => {
          answer(0, names, attributes);
        },
      ),
      open: guarded('open', (path: string, flags: number) => this.#open(path, flags), value),
      statfs: guarded('statfs', () => this.#statfs(), value),
      truncate: guarded(
        'truncate',
        async (path: string, size: number) => (await this.#node(path)).truncate(size, false),
        done,
      ),
      ftruncate: guarded(
        'ftruncate',
        async (path: string, _handle: number, size: number) =>
          (await this.#node(path)).truncate(size, true),
        done,
      ),
      utimens: guarded(
        'utimens',
        async (path: string, accessed: number, modified: number) => {
          await utimes((await this.#node(path)).imageFile(), accessed / 1000, modified / 1000);
        },
        done,
      ),
      chmod: guarded(
        'chmod',
        async (path: string, mode: number) => {
          await chmod((await this.#node(path)).imageFile(), mode & 0o7777);
        },
        done,
      ),
      chown: guarded(
        'chown',
        async (path: string, uid: number, gid: number) => {
          await chown((await this.#node(path)).imageFile(), signed(uid), signed(gid));
        },
        done,
      ),
      unlink: guarded(
        'unlink',
        async (path: string) => {
          const node = await this.#node(path);
          await this.#inProgress(() => node.unlink());
        },
        done,
      ),
      rename: guarded(
        'rename',
        async (path: string, target: string) => {
          const node = await this.#node(path);
          await this.#inProgress(() => node.rename(target));
        },
        done,
      ),
      getxattr: guarded(
        'getxattr',
        async (path: string, name: string) =>
          Buffer.from(await (await this.#node(path)).extendedAttribute(name)),
        value,
      ),
      listxattr: guarded(
        'listxattr',
        async (path: string) => (await this.#node(path)).extendedAttributeNames(),
        value,
      ),
    };
  }

  /**
   * Reading, writing and syncing flat files come here only if the native operations are not active.
   */
  #onOpenFiles(): Operations {
    const { files } = this.#context;
    return {
      release: guarded(
        'release',
        async (_path: string, handle: number) => {
          files.close(handle);
          return Promise.resolve();
        },
        done,
      ),
      read: guarded(
        'read',
        (_path: string, handle: number, buffer: Buffer, length: number, offset: number) =>
          this.#fetching(files.get(handle), (file) =>
            file.read(buffer.subarray(0, length), offset),
          ),
        count,
      ),
      write: guarded(
        'write',
        (_path: string, handle: number, buffer: Buffer, length: number, offset: number) =>
          this.#inProgress(() =>
            this.#fetching(files.get(handle), (file) =>
              file.write(buffer.subarray(0, length), offset),
            ),
          ),
        count,
      ),
      fsync: guarded(
        'fsync',
        (_path: string, _datasync: number, handle: number) => files.get(handle).sync(),
        done,
      ),
    };
  }

  /** Files can only be made in a mount through its control files. */
  #refused(): Operations {
    const path = (name: string) =>
      guarded(name, (made: string) => this.#refuseCreation(made), done);
    const target = (name: string) =>
      guarded(name, (_source: string, made: string) => this.#refuseCreation(made), done);
    return {
      create: path('create'),
      mknod: path('mknod'),
      mkdir: path('mkdir'),
      rmdir: guarded(
        'rmdir',
        (directory: string) => Promise.reject(belongsToMount(directory)),
        done,
      ),
      symlink: target('symlink'),
      link: target('link'),
    };
  }

  #node(path: string): Promise<Node> {
    return resolve(this.#context, path);
  }

  async #readdir(path: string): Promise<{ names: string[]; attributes: Attributes[] }> {
    const node = await this.#node(path);
    const names = ['.', '..'];
    const own = await node.attributes();
    const attributes = [own, own];
    for (const name of await node.names()) {
      const listed = await this.#listed(path === '/' ? `/${name}` : `${path}/${name}`);
      if (listed) {
        attributes.push(listed);
        names.push(name);
      }
    }
    return { names, attributes };
  }

  /** Returns null if the file does not exist any more. */
  async #listed(path: string): Promise<Attributes | null> {
    try {
      return await (await this.#node(path)).listed();
    } catch (error) {
      // Other errors are reported when the file itself is accessed.
      return error instanceof PcowError && error.code === 'PCOW_NOT_FOUND'
        ? null
        : this.#context.attributes.unreadable(path);
    }
  }

  async #open(path: string, flags: number): Promise<number> {
    const node = await this.#node(path);
    const writable = (flags & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
    return this.#context.files.add(await node.open(writable));
  }

  /**
   * Works on an open file; if that is a flat file, again whenever a block has been fetched that was
   * missing.
   */
  async #fetching<T>(file: OpenFile, work: (file: OpenFile) => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await work(file);
      } catch (error) {
        const block = isPcowError(error, 'PCOW_REMOTE') ? error.remote : undefined;
        if (block === undefined || !(file instanceof OpenFlatFile)) throw error;
        await this.#context.fetchers.fetchBlock(block);
      }
    }
  }

  async #inProgress<T>(work: () => Promise<T>): Promise<T> {
    this.#commandsInProgress += 1;
    try {
      return await work();
    } finally {
      this.#commandsInProgress -= 1;
    }
  }

  /** The native operations wait for this. Never rejects. */
  async answer(question: Question): Promise<QuestionAnswer> {
    try {
      return await this.#context.files.get(question.fh).answer(question);
    } catch (error) {
      return { errno: errnoOf(error) };
    }
  }

  async #statfs(): Promise<object> {
    const { bsize, blocks, bfree, bavail, files, ffree } = await statfs(
      this.#context.place.directory,
    );
    return {
      bsize,
      frsize: bsize,
      blocks,
      bfree,
      bavail,
      files,
      ffree,
      favail: ffree,
      namemax: 250,
    };
  }

  #refuseCreation(path: string): Promise<never> {
    const error = refusal(
      'EPERM',
      'PCOW_PERMISSION',
      `${path} can't be made here: make a new image with "pcow create" in ${this.#context.place.directory}, or clone one`,
    );
    this.#context.failed('create', error);
    return Promise.reject(error);
  }
}

function done(answer: (result: number) => void): void {
  answer(0);
}

function value(answer: (result: number, value: unknown) => void, result: unknown): void {
  answer(0, result);
}

function count(answer: (result: number) => void, bytes: number): void {
  answer(bytes);
}

/** (uid_t)-1 means "do not change", and arrives as an unsigned number. */
function signed(id: number): number {
  return id === 0xffff_ffff ? -1 : id;
}
