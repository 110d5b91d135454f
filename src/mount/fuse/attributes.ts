/** The attributes (stat(2)) of the files of a mount. */
import type { SnapshotInfo } from '../../engine/index.js';
import { interceptions, tellFlatFile } from '../../engine/native-operations.js';
import type { Found } from '../images/catalog.js';
import { fileStatus } from '../images/image-entry.js';
import type { ImageEntry } from '../images/image-entry.js';
import { halves, InodeNumbers, ROOT_INODE } from './inode-numbers.js';
import type { Place } from '../place.js';

/** As fuse-native expects it. */
export interface Attributes {
  mode: number;
  uid: number;
  gid: number;
  /** Bytes. */
  size: number;
  /** The lower half of the inode number; `dev` has the upper half. */
  ino: number;
  dev: number;
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
/** The number of directories in a directory is not told, because programs would rely on it. */
const DIRECTORY_LINKS = 1;
const BLOCK = 4096;
/**
 * Of files that take no disk space. Not 0: some programs treat a file without blocks as one big
 * hole.
 */
const FEW_BLOCKS = BLOCK / 512;

export class AttributeSource {
  readonly #place: Place;
  readonly #interceptions = interceptions();
  #numbers: InodeNumbers | null = null;

  /** Call it before the session begins. */
  constructor(place: Place) {
    this.#place = place;
  }

  /**
   * First used by a request of the session, when it has been decided whether its operations are
   * native.
   */
  get #inodes(): InodeNumbers {
    this.#numbers ??= new InodeNumbers(interceptions() > this.#interceptions ? 63 : 32);
    return this.#numbers;
  }

  /** The inode number of the flat file. */
  async inodeOf(entry: ImageEntry): Promise<bigint> {
    const { uuid } = await entry.view();
    return this.#inodes.of(flatKey(entry), `flat ${lasting(entry, uuid)}`);
  }

  /**
   * Of `entries`, the image whose flat file has this inode number, if that has been asked for
   * before.
   */
  entryWith(inode: bigint, entries: ImageEntry[]): ImageEntry | undefined {
    return entries.find((entry) => this.#inodes.known(flatKey(entry)) === inode);
  }

  /** For a file that cannot be read at this moment, in the list of a directory. */
  unreadable(path: string): Promise<Attributes> {
    return this.#ofMount(REGULAR, 0, path);
  }

  async ofRoot(path: string): Promise<Attributes> {
    return { ...(await this.#ofMount(DIRECTORY, 0o777, path)), ...halves(ROOT_INODE) };
  }

  ofControlDirectory(path: string): Promise<Attributes> {
    return this.#ofMount(DIRECTORY, 0o555, path);
  }

  /** A control file of the mount with `size` bytes of text. */
  async ofMountControl(path: string, writable: boolean, size: number): Promise<Attributes> {
    return { ...(await this.#ofMount(REGULAR, writable ? 0o666 : 0o444, path)), size, nlink: 1 };
  }

  /** A directory that belongs to an image; of the image's permissions it has those in `mask`. */
  ofImageDirectory(found: Found, path: string, mask: number): Attributes {
    return { ...this.#ofImage(found, DIRECTORY, mask), ...this.#control(path) };
  }

  /** A control file of an image with `size` bytes of text. */
  ofImageControl(found: Found, path: string, writable: boolean, size: number): Attributes {
    return {
      ...this.#ofImage(found, REGULAR, writable ? 0o666 : 0o444),
      ...this.#control(path),
      size,
      blocks: 0,
    };
  }

  async ofSnapshot(found: Found, { created, size, id, identity }: SnapshotInfo): Promise<Attributes> {
    const { entry } = found;
    const { uuid } = await entry.view();
    const layer = `${id} ${identity}`;
    const number = this.#inodes.of(`snapshot ${entry.identity} ${layer}`, `snapshot ${lasting(entry, uuid)} ${layer}`);
    return {
      ...this.#ofImage(found, REGULAR, 0o444),
      size,
      ...halves(number),
      atime: created,
      mtime: created,
      ctime: created,
    };
  }

  async ofFlatFile(found: Found): Promise<Attributes> {
    const { entry, status } = found;
    const { image } = await entry.view();
    const number = await this.inodeOf(entry);
    tellFlatFile(entry.name, status, number, image);
    return {
      ...this.#ofImage(found, REGULAR, 0o777),
      size: image.size(),
      blocks: status.blocks,
      ...halves(number),
    };
  }

  /**
   * For files that belong to no image: the owner of the image directory, and of its permissions
   * those in `mask`.
   */
  async #ofMount(type: number, mask: number, path: string): Promise<Attributes> {
    const status = await fileStatus(this.#place.directory);
    return {
      mode: type | (status.mode & mask),
      uid: status.uid,
      gid: status.gid,
      size: BLOCK,
      ...this.#control(path),
      nlink: DIRECTORY_LINKS,
      blocks: 0,
      blksize: BLOCK,
      atime: new Date(status.accessed),
      mtime: new Date(status.modified),
      ctime: new Date(status.changed),
    };
  }

  /**
   * The owner and permissions of the image: a user who may read the image may enter its directory
   * and read its status.
   */
  #ofImage({ status }: Found, type: number, mask: number): Attributes {
    const readable = status.mode & 0o444;
    return {
      mode: type | (status.mode & mask) | (type === DIRECTORY ? readable | (readable >> 2) : 0),
      uid: status.uid,
      gid: status.gid,
      size: BLOCK,
      ...halves(0n),
      nlink: 1,
      blocks: type === DIRECTORY ? 0 : FEW_BLOCKS,
      blksize: BLOCK,
      atime: new Date(status.accessed),
      mtime: new Date(status.modified),
      ctime: new Date(status.changed),
    };
  }

  /** Files without content of their own are identified by their path. */
  #control(path: string): Pick<Attributes, 'ino' | 'dev'> {
    return halves(this.#inodes.of(`path ${path}`));
  }
}

function flatKey(entry: ImageEntry): string {
  return `flat ${entry.identity}`;
}

/**
 * What identifies an image in every mount: its uuid, which a copy of the file has too, and the
 * file's inode number, which a copy does not have.
 */
function lasting({ identity }: ImageEntry, uuid: string): string {
  return `${uuid} ${identity.split(':')[1] ?? ''}`;
}
