/**
 * What a path in the mount names: a directory, a flat file, the file of a snapshot, or a control
 * file. Each is a class that implements the filesystem operations it supports; this class refuses
 * the others.
 */
import type { PcowError } from '../../engine/index.js';
import type { Question, QuestionAnswer } from '../../engine/native-operations.js';
import type { Attributes } from '../fuse/attributes.js';
import { noSuchFile, refusal } from '../failure.js';
import type { MountContext } from '../context.js';
import type { Found } from '../images/catalog.js';
import type { FlatFileUse } from '../images/image-entry.js';

export abstract class Node {
  protected readonly context: MountContext;
  /** As requested, beginning with a slash. */
  readonly path: string;

  constructor(context: MountContext, path: string) {
    this.context = context;
    this.path = path;
  }

  /** getattr */
  abstract attributes(): Promise<Attributes>;

  /**
   * The same for the list of a directory, where the kernel uses only the type and the inode number.
   */
  listed(): Promise<Attributes> {
    return this.attributes();
  }

  /** readdir, without "." and "..". */
  names(): Promise<string[]> {
    return Promise.reject(noSuchFile(this.path));
  }

  open(_writable: boolean): Promise<OpenFile> {
    return Promise.reject(noSuchFile(this.path));
  }

  /** `byHandle`: ftruncate(2); otherwise truncate(2), or open(2) with O_TRUNC. */
  truncate(_size: number, _byHandle: boolean): Promise<void> {
    return Promise.reject(
      refusal('EPERM', 'PCOW_PERMISSION', `the size of ${this.path} cannot be changed`),
    );
  }

  /** The image file, to which chmod, chown and utimens apply. */
  imageFile(): string {
    throw refusal(
      'EPERM',
      'PCOW_PERMISSION',
      `${this.path} has the permissions of its image: change those of its flat file`,
    );
  }

  unlink(): Promise<void> {
    return Promise.reject(belongsToMount(this.path));
  }

  rename(target: string): Promise<void> {
    const message = `${this.path} can't become ${target}: only images and snapshots can be renamed`;
    return Promise.reject(refusal('EPERM', 'PCOW_PERMISSION', message));
  }

  /** getxattr */
  extendedAttribute(name: string): Promise<string> {
    return Promise.reject(
      refusal('ENODATA', 'PCOW_NOT_FOUND', `${this.path} has no attribute ${name}`),
    );
  }

  /** listxattr */
  extendedAttributeNames(): string[] {
    return [];
  }
}

/** A node of one image. */
export abstract class ImageNode extends Node {
  protected readonly found: Found;

  constructor(context: MountContext, path: string, found: Found) {
    super(context, path);
    this.found = found;
  }
}

/**
 * The result of open(2). It stays with the node for which it was opened, whatever its path names
 * later.
 */
export interface OpenFile {
  /** The path of its node. */
  readonly path: string;
  /** Its handle number if its bytes are served natively; null: any free number. */
  readonly handle: number | null;
  /** The use of a flat file, or of a snapshot's file; null: there is none. */
  readonly use: FlatFileUse | null;
  /** The number of bytes of a control file's text; null: it has no text. */
  readonly textSize: number | null;
  /** Returns the number of bytes read. */
  read(buffer: Buffer, offset: number): Promise<number>;
  /** Returns the number of bytes written. */
  write(buffer: Buffer, offset: number): Promise<number>;
  sync(): Promise<void>;
  /** A native operation on it waits for the answer. */
  answer(question: Question): Promise<QuestionAnswer>;
  /** release: no operation is in progress, and none follows. */
  close(): void;
}

/** The refusal to remove a file that does not belong to an image. */
export function belongsToMount(path: string): PcowError {
  return refusal('EPERM', 'PCOW_PERMISSION', `${path} can't be removed: it belongs to the mount`);
}
