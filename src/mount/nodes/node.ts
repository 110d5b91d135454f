/**
 * What a path in the mount stands for: a directory, a flat file, the file of a snapshot, a control file. Each is a class with what it
 * supports of the file system's operations; what is not supported is refused here.
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
  /** As it was asked for, beginning with a slash. */
  readonly path: string;

  constructor(context: MountContext, path: string) {
    this.context = context;
    this.path = path;
  }

  /** getattr */
  abstract attributes(): Promise<Attributes>;

  /** The same for the list of a directory, of which the kernel takes the type and the inode number only. */
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
    return Promise.reject(refusal('EPERM', 'PCOW_PERMISSION', `${this.path} has no size that can be set`));
  }

  /** The image file, which chmod, chown and utimens are meant for. */
  imageFile(): string {
    throw refusal('EPERM', 'PCOW_PERMISSION', `${this.path} has the rights of its image: change those`);
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
    return Promise.reject(refusal('ENODATA', 'PCOW_NOT_FOUND', `${this.path} has no attribute ${name}`));
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

/** What open(2) has given: it stays with the node that it was opened for, whatever its path stands for later. */
export interface OpenFile {
  /** Of its node. */
  readonly path: string;
  /** Its handle number, where its bytes are served natively; null: any number. */
  readonly handle: number | null;
  /** Of a flat file, or the file of a snapshot; null: it has none. */
  readonly use: FlatFileUse | null;
  /** How many bytes a control file says; null: its size is not that of a text. */
  readonly textSize: number | null;
  /** How many bytes were read. */
  read(buffer: Buffer, offset: number): Promise<number>;
  /** How many bytes were taken. */
  write(buffer: Buffer, offset: number): Promise<number>;
  sync(): Promise<void>;
  /** What a native operation on it waits for. */
  answer(question: Question): Promise<QuestionAnswer>;
  /** release: no operation is under way, and none follows. */
  close(): void;
}

/** The refusal to remove what no image holds. */
export function belongsToMount(path: string): PcowError {
  return refusal('EPERM', 'PCOW_PERMISSION', `${path} can't be removed: it belongs to the mount`);
}
