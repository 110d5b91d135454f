/** The file system operations of a mount. They only find out what is meant, and say so: the work is done elsewhere. */
import { constants } from 'node:fs';
import { chmod, chown, statfs, utimes } from 'node:fs/promises';
import { basename, dirname } from 'node:path';

import { PcowError } from '../engine/index.js';
import type { Attributes, AttributeSource } from './attributes.js';
import { commandText } from './control-text.js';
import type { ControlContext } from './control-tree.js';
import { extendedAttributeNames, extendedAttributes } from './extended-attributes.js';
import type { Question, QuestionAnswer } from '../engine/native-operations.js';
import { errnoOf, noSuchFile, refusal } from './failure.js';
import { guarded, type Operations } from './fuse.js';
import { neededBy } from './hand-over.js';
import type { ImageEntry } from './image-entry.js';
import { lastErrorOf } from './last-error.js';
import { log } from './log.js';
import { namesIn, type Node, resolve } from './namespace.js';
import { OpenFiles } from './open-files.js';

export class FileSystem {
  readonly #context: ControlContext;
  readonly #attributes: AttributeSource;
  readonly #files = new OpenFiles();
  /** Whether the bytes of flat files are served natively; known once the session has begun, and before the first open. */
  native = false;
  #commandsUnderWay = 0;

  constructor(context: ControlContext, attributes: AttributeSource) {
    this.#context = context;
    this.#attributes = attributes;
  }

  /** Whether somebody could not go on without this mount, or has begun what it is to finish. */
  get needed(): boolean {
    return this.#commandsUnderWay > 0 || neededBy(this.#files.flatFiles);
  }

  get operations(): Operations {
    const done = (answer: (result: number) => void) => {
      answer(0);
    };
    const value = (answer: (result: number, value: unknown) => void, result: unknown) => {
      answer(0, result);
    };
    const count = (answer: (result: number) => void, bytes: number) => {
      answer(bytes);
    };
    const getattr = guarded('getattr', (path: string) => this.#getattr(path), value);
    const refused = (name: string) => guarded(name, (path: string) => this.#refuseCreation(path), done);
    const refusedTarget = (name: string) =>
      guarded(name, (_source: string, target: string) => this.#refuseCreation(target), done);
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
      release: guarded(
        'release',
        async (_path: string, handle: number) => {
          this.#files.close(handle);
          return Promise.resolve();
        },
        done,
      ),
      read: guarded(
        'read',
        (_path: string, handle: number, buffer: Buffer, length: number, offset: number) =>
          this.#read(handle, buffer.subarray(0, length), offset),
        count,
      ),
      write: guarded(
        'write',
        (path: string, handle: number, buffer: Buffer, length: number, offset: number) =>
          this.#write(path, handle, buffer.subarray(0, length), offset),
        count,
      ),
      fsync: guarded('fsync', (_path: string, _datasync: number, handle: number) => this.#fsync(handle), done),
      statfs: guarded('statfs', () => this.#statfs(), value),
      truncate: guarded('truncate', (path: string, size: number) => this.#truncate(path, size, false), done),
      ftruncate: guarded(
        'ftruncate',
        (path: string, _handle: number, size: number) => this.#truncate(path, size, true),
        done,
      ),
      utimens: guarded(
        'utimens',
        async (path: string, accessed: number, modified: number) => {
          await utimes(await this.#imageFileOf(path), accessed / 1000, modified / 1000);
        },
        done,
      ),
      chmod: guarded(
        'chmod',
        async (path: string, mode: number) => {
          await chmod(await this.#imageFileOf(path), mode & 0o7777);
        },
        done,
      ),
      chown: guarded(
        'chown',
        async (path: string, uid: number, gid: number) => {
          await chown(await this.#imageFileOf(path), signed(uid), signed(gid));
        },
        done,
      ),
      unlink: guarded('unlink', (path: string) => this.#unlink(path), done),
      rename: guarded('rename', (path: string, target: string) => this.#rename(path, target), done),
      create: refused('create'),
      mknod: refused('mknod'),
      mkdir: refused('mkdir'),
      rmdir: guarded('rmdir', (path: string) => Promise.reject(belongsToMount(path)), done),
      symlink: refusedTarget('symlink'),
      link: refusedTarget('link'),
      getxattr: guarded('getxattr', (path: string, name: string) => this.#getxattr(path, name), value),
      listxattr: guarded('listxattr', (path: string) => this.#listxattr(path), value),
    };
  }

  async #getattr(path: string): Promise<Attributes> {
    const node = await resolve(this.#context.catalog, path);
    return this.#attributesOf(node, path);
  }

  #attributesOf(node: Node, path: string): Promise<Attributes> {
    return this.#attributes.of(node, path, async () => {
      const open = this.#files.textOf(path);
      return open?.length ?? Buffer.byteLength(await this.#textOf(node));
    });
  }

  async #readdir(path: string): Promise<{ names: string[]; attributes: Attributes[] }> {
    const node = await resolve(this.#context.catalog, path);
    const names = ['.', '..'];
    const own = await this.#attributesOf(node, path);
    const attributes = [own, own];
    const { showControl } = this.#context.place.settings;
    for (const name of await namesIn(this.#context.catalog, node, path, showControl)) {
      const listed = await this.#listed(path === '/' ? `/${name}` : `${path}/${name}`);
      if (listed) {
        attributes.push(listed);
        names.push(name);
      }
    }
    return { names, attributes };
  }

  /** Of these the kernel takes the type and the inode number only: no text is made for its size. null: there is no such file any more. */
  async #listed(path: string): Promise<Attributes | null> {
    const noSize = () => Promise.resolve(0);
    try {
      return await this.#attributes.of(await resolve(this.#context.catalog, path), path, noSize);
    } catch (error) {
      // Whatever else is wrong is told to who looks at the file itself.
      return error instanceof PcowError && error.code === 'PCOW_NOT_FOUND' ? null : this.#attributes.unreadable(path);
    }
  }

  async #open(path: string, flags: number): Promise<number> {
    const node = await resolve(this.#context.catalog, path);
    const writable = (flags & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
    switch (node.kind) {
      case 'flat':
        return this.#openFlatFile(node.found.entry, null, writable);
      case 'snapshot':
        if (writable) {
          throw refusal('EACCES', 'PCOW_READ_ONLY', `${path} is a snapshot: it never changes; clone it to write on it`);
        }
        return this.#openFlatFile(node.found.entry, node.snapshot.name, false);
      case 'image control':
      case 'mount control':
        if (writable && !node.file.write) {
          throw refusal('EACCES', 'PCOW_READ_ONLY', `${path} only tells something: nothing can be written to it`);
        }
        return this.#files.addText(path, await this.#textOf(node));
      default:
        throw noSuchFile(path);
    }
  }

  async #openFlatFile(entry: ImageEntry, snapshot: string | null, writable: boolean): Promise<number> {
    try {
      const use = await entry.open(snapshot, writable);
      try {
        return this.#files.addFlatFile(use, this.native);
      } catch (error) {
        entry.close(use);
        throw error;
      }
    } catch (error) {
      entry.failed('open', error);
      throw error;
    }
  }

  #textOf(node: Node): Promise<string> {
    switch (node.kind) {
      case 'image control':
        return node.file.read(this.#context, node.found);
      case 'mount control':
        return node.file.read(this.#context, null);
      default:
        return Promise.resolve('');
    }
  }

  /** Of flat files only where the native operations did not take hold. */
  async #read(handle: number, buffer: Buffer, offset: number): Promise<number> {
    const file = this.#files.get(handle);
    if (file.kind === 'text') {
      return file.text.copy(buffer, 0, Math.min(offset, file.text.length));
    }
    const { opening, snapshot } = file.use;
    const bytes = await (snapshot === null
      ? opening.image.read(buffer, offset)
      : opening.image.read(buffer, offset, snapshot));
    opening.served.reads += 1;
    opening.served.readBytes += bytes;
    return bytes;
  }

  async #write(path: string, handle: number, buffer: Buffer, offset: number): Promise<number> {
    const file = this.#files.get(handle);
    if (file.kind === 'text') {
      // Wherever it is written to: `>>` begins at the end of what the file says.
      await this.#underWay(() => this.#command(path, buffer));
      return buffer.length;
    }
    await file.use.entry.attachment.regain(file.use);
    const { opening } = file.use;
    const bytes = await opening.image.write(buffer, offset);
    opening.served.writes += 1;
    opening.served.writtenBytes += bytes;
    return bytes;
  }

  async #underWay(work: () => Promise<void>): Promise<void> {
    this.#commandsUnderWay += 1;
    try {
      await work();
    } finally {
      this.#commandsUnderWay -= 1;
    }
  }

  /** One write to a control file. Its failure is kept for `status`. */
  async #command(path: string, bytes: Buffer): Promise<void> {
    const node = await resolve(this.#context.catalog, path);
    switch (node.kind) {
      case 'image control': {
        const { entry } = node.found;
        try {
          await node.file.write?.(this.#context, node.found, commandText(bytes));
          entry.count(node.name);
        } catch (error) {
          entry.failed(node.name, error);
          throw error;
        }
        return;
      }
      case 'mount control':
        try {
          await node.file.write?.(this.#context, null, commandText(bytes));
        } catch (error) {
          this.#failed('snapshot', error);
          throw error;
        }
        return;
      default:
        throw noSuchFile(path);
    }
  }

  /** Of a command that belongs to no single image. */
  #failed(command: string, error: unknown): void {
    this.#context.lastError = lastErrorOf(command, error);
    log(`${command} failed: ${this.#context.lastError.message}`);
  }

  async #fsync(handle: number): Promise<void> {
    const file = this.#files.get(handle);
    if (file.kind !== 'flat') {
      return;
    }
    await file.use.entry.attachment.sync();
  }

  /** What the native operations wait for. Never rejects. */
  async answer({ kind, fh, pid }: Question): Promise<QuestionAnswer> {
    try {
      const file = this.#files.get(fh);
      if (file.kind !== 'flat') {
        return 'yes';
      }
      const { use } = file;
      if (kind === 'open') {
        return await use.entry.attachment.mayOpen(use, pid).catch((error: unknown) => {
          use.entry.failed('open', error);
          throw error;
        });
      }
      await use.entry.attachment.regain(use);
      return 'yes';
    } catch (error) {
      return { errno: errnoOf(error) };
    }
  }

  async #statfs(): Promise<object> {
    const { bsize, blocks, bfree, bavail, files, ffree } = await statfs(this.#context.place.directory);
    return { bsize, frsize: bsize, blocks, bfree, bavail, files, ffree, favail: ffree, namemax: 250 };
  }

  /**
   * A flat file keeps its size. open(O_TRUNC) comes as `truncate` to 0 without a handle, and does nothing, as on a block
   * device; a shell's `>` does the same to control files.
   */
  async #truncate(path: string, size: number, byHandle: boolean): Promise<void> {
    const node = await resolve(this.#context.catalog, path);
    if (node.kind !== 'flat') {
      if (node.kind === 'snapshot') {
        throw refusal('EACCES', 'PCOW_READ_ONLY', `${path} is a snapshot: it never changes`);
      }
      return;
    }
    const { entry } = node.found;
    const { image } = await entry.view();
    const present = image.size();
    if (size === present || (size === 0 && !byHandle)) {
      return;
    }
    const error = refusal(
      'EPERM',
      'PCOW_INVALID',
      `${entry.name} keeps its size of ${present} bytes, ${size} was asked for: an image is made larger with "pcow resize"`,
    );
    entry.failed('truncate', error);
    throw error;
  }

  /** chmod, chown and touch on a flat file are meant for its image file. */
  async #imageFileOf(path: string): Promise<string> {
    const node = await resolve(this.#context.catalog, path);
    if (node.kind !== 'flat') {
      throw refusal('EPERM', 'PCOW_PERMISSION', `${path} has the rights of its image: change those`);
    }
    return node.found.entry.file;
  }

  async #unlink(path: string): Promise<void> {
    const node = await resolve(this.#context.catalog, path);
    if (node.kind !== 'flat') {
      throw node.kind === 'snapshot'
        ? refusal('EPERM', 'PCOW_PERMISSION', `${path} can't be removed: write its name to the "delete" control file`)
        : belongsToMount(path);
    }
    const { entry } = node.found;
    await this.#onImage(entry, 'rm', () => this.#context.catalog.unlink(entry.name));
  }

  async #rename(path: string, target: string): Promise<void> {
    const node = await resolve(this.#context.catalog, path);
    if (node.kind === 'snapshot') {
      return this.#renameSnapshot(node.found.entry, node.snapshot.name, path, target);
    }
    const [, name, ...rest] = target.split('/');
    if (node.kind !== 'flat' || name === undefined || rest.length > 0) {
      throw refusal(
        'EPERM',
        'PCOW_PERMISSION',
        `${path} can't become ${target}: only images and snapshots can be renamed`,
      );
    }
    const { entry } = node.found;
    await this.#onImage(entry, 'mv', () => this.#context.catalog.rename(entry.name, name));
  }

  /** A snapshot stays one of its image. */
  async #renameSnapshot(entry: ImageEntry, snapshot: string, path: string, target: string): Promise<void> {
    const to = basename(target);
    await this.#onImage(entry, 'mv', async () => {
      if (dirname(target) !== dirname(path)) {
        throw refusal('EPERM', 'PCOW_PERMISSION', `${path} can't become ${target}: a snapshot stays with its image`);
      }
      await this.#context.commands.renameSnapshot(entry, snapshot, to);
    });
  }

  async #onImage(entry: ImageEntry, command: string, work: () => Promise<void>): Promise<void> {
    try {
      await this.#underWay(work);
    } catch (error) {
      entry.failed(command, error);
      throw error;
    }
  }

  #refuseCreation(path: string): Promise<never> {
    const error = refusal(
      'EPERM',
      'PCOW_PERMISSION',
      `${path} can't be made here: new images come with "pcow create" in ${this.#context.place.directory}, or by cloning one`,
    );
    this.#failed('create', error);
    return Promise.reject(error);
  }

  async #getxattr(path: string, name: string): Promise<Buffer> {
    const node = await resolve(this.#context.catalog, path);
    const read = node.kind === 'flat' ? extendedAttributes.get(name) : undefined;
    if (node.kind !== 'flat' || !read) {
      throw refusal('ENODATA', 'PCOW_NOT_FOUND', `${path} has no attribute ${name}`);
    }
    return Buffer.from(await read(node.found.entry, this.#context.place));
  }

  async #listxattr(path: string): Promise<string[]> {
    const node = await resolve(this.#context.catalog, path);
    return node.kind === 'flat' ? extendedAttributeNames(this.#context.place) : [];
  }
}

function belongsToMount(path: string): PcowError {
  return refusal('EPERM', 'PCOW_PERMISSION', `${path} can't be removed: it belongs to the mount`);
}

/** (uid_t)-1 means "leave it", and comes as an unsigned number. */
function signed(id: number): number {
  return id === 0xffff_ffff ? -1 : id;
}
