/** What stat(2) says of the files of a mount. */
import { tellFlatFile } from '../engine/native-operations.js';
import type { Found } from './catalog.js';
import { fileStatus } from './image-entry.js';
import type { ImageEntry } from './image-entry.js';
import { InodeNumbers, ROOT_INODE } from './inode-numbers.js';
import type { Node } from './namespace.js';
import type { Place } from './place.js';

/** As fuse-native takes it. */
export interface Attributes {
  mode: number;
  uid: number;
  gid: number;
  /** Bytes. */
  size: number;
  ino: number;
  nlink: number;
  /** 512-byte units. */
  blocks: number;
  blksize: number;
  atime: Date;
  mtime: Date;
  ctime: Date;
}

const DIRECTORY = 0o040000;
const REGULAR = 0o100000;
/** How many directories are in one is not said: programs would count on it. */
const DIRECTORY_LINKS = 1;
const BLOCK = 4096;
/** Of what takes no disk of its own. Not 0: some programs take a file without blocks for one big hole. */
const FEW_BLOCKS = BLOCK / 512;

export class AttributeSource {
  readonly #place: Place;
  readonly #inodes = new InodeNumbers();

  constructor(place: Place) {
    this.#place = place;
  }

  inodeOf(entry: ImageEntry): number {
    return this.#inodes.of(`flat ${entry.identity}`);
  }

  /** `textSize` gives the size in bytes of a control file's text. */
  async of(node: Node, path: string, textSize: () => Promise<number>): Promise<Attributes> {
    switch (node.kind) {
      case 'root':
        return { ...(await this.#ofMount(DIRECTORY, 0o777)), ino: ROOT_INODE };
      case 'control':
        return { ...(await this.#ofMount(DIRECTORY, 0o555)), ino: this.#inodes.of(path) };
      case 'mount control':
        return {
          ...(await this.#ofMount(REGULAR, node.file.write ? 0o666 : 0o444)),
          ...this.#regular(path, await textSize()),
        };
      case 'image':
      case 'snapshots':
        return { ...this.#ofImage(node.found, DIRECTORY, 0), ino: this.#inodes.of(path) };
      case 'image control':
        return {
          ...this.#ofImage(node.found, REGULAR, node.file.write ? 0o666 : 0o444),
          ...this.#regular(path, await textSize()),
        };
      case 'snapshot': {
        const { created, size, id } = node.snapshot;
        return {
          ...this.#ofImage(node.found, REGULAR, 0o444),
          size,
          ino: this.#inodes.of(`snapshot ${node.found.entry.identity} ${id}`),
          atime: created,
          mtime: created,
          ctime: created,
        };
      }
      case 'flat': {
        const { entry, status } = node.found;
        const { image } = await entry.view();
        const number = this.inodeOf(entry);
        tellFlatFile(entry.name, status, number, image);
        return {
          ...this.#ofImage(node.found, REGULAR, 0o777),
          size: image.size(),
          blocks: status.blocks,
          ino: number,
        };
      }
    }
  }

  /** Of what belongs to no image: with the owner of the image directory, and of its rights those in `mask`. */
  async #ofMount(type: number, mask: number): Promise<Attributes> {
    const status = await fileStatus(this.#place.directory);
    return {
      mode: type | (status.mode & mask),
      uid: status.uid,
      gid: status.gid,
      size: BLOCK,
      ino: 0,
      nlink: DIRECTORY_LINKS,
      blocks: 0,
      blksize: BLOCK,
      atime: new Date(status.accessed),
      mtime: new Date(status.modified),
      ctime: new Date(status.changed),
    };
  }

  /** With the owner and the rights of the image: who may read the image may enter its directory and read its status. */
  #ofImage({ status }: Found, type: number, mask: number): Attributes {
    const readable = status.mode & 0o444;
    return {
      mode: type | (type === DIRECTORY ? readable | (readable >> 2) : status.mode & mask),
      uid: status.uid,
      gid: status.gid,
      size: BLOCK,
      ino: 0,
      nlink: 1,
      blocks: type === DIRECTORY ? 0 : FEW_BLOCKS,
      blksize: BLOCK,
      atime: new Date(status.accessed),
      mtime: new Date(status.modified),
      ctime: new Date(status.changed),
    };
  }

  #regular(path: string, size: number): Pick<Attributes, 'size' | 'ino' | 'nlink' | 'blocks'> {
    return { size, ino: this.#inodes.of(path), nlink: 1, blocks: 0 };
  }
}
