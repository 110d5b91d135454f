/** The attributes (stat(2)) of the files of a mount. */
import type { SnapshotInfo } from '../../engine/index.js';
import {
  forgetFilesIn,
  forgetFlatFile,
  interceptions,
  tellFlatFile,
} from '../../engine/native-operations.js';
import type { Found } from '../images/catalog.js';
import { fileStatus } from '../images/image-entry.js';
import type { ImageEntry } from '../images/image-entry.js';
import { halves, InodeGroup, InodeNumbers, ROOT_INODE } from './inode-numbers.js';
import { snapshotDirectory } from '../nodes/directory.js';
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
/** A directory does not report the number of its subdirectories: programs would rely on it. */
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
  #ofMount: InodeGroup | null = null;
  /**
   * By the identity of the image file, because two names may refer to the same file. `entries` are
   * those that have numbers; a group without one is forgotten.
   */
  readonly #ofImages = new Map<string, { group: InodeGroup; entries: Set<ImageEntry> }>();

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

  get #mountGroup(): InodeGroup {
    this.#ofMount ??= new InodeGroup(this.#inodes);
    return this.#ofMount;
  }

  /** The number of a file of an image. An entry that is gone gets it without its being kept. */
  #numberOf(entry: ImageEntry, key: string, lasting: string): bigint {
    if (entry.retired) return this.#inodes.hash(lasting);
    let known = this.#ofImages.get(entry.identity);
    if (!known) {
      known = { group: new InodeGroup(this.#inodes), entries: new Set() };
      this.#ofImages.set(entry.identity, known);
    }
    known.entries.add(entry);
    return known.group.of(key, lasting);
  }

  /** How many inode numbers are kept. */
  get kept(): number {
    return this.#inodes.count;
  }

  /** The image is gone, or its name is about to change. */
  forget(entry: ImageEntry): void {
    forgetFlatFile(entry.name);
    forgetFilesIn(`${snapshotDirectory(entry.name)}/`, []);
    const known = this.#ofImages.get(entry.identity);
    known?.entries.delete(entry);
    if (known?.entries.size !== 0) return;
    known.group.sweep(() => false);
    this.#ofImages.delete(entry.identity);
  }

  /**
   * Forgets the snapshots that are gone, whichever process deleted them. Called only when there are
   * many numbers, so that a file's attributes do not require a list of the snapshots each time.
   */
  async #forgetSnapshots(entry: ImageEntry): Promise<void> {
    const group = this.#ofImages.get(entry.identity)?.group;
    if (group?.full !== true) return;
    const { image } = await entry.view();
    const snapshots = image.snapshots({ countData: false });
    const present = new Set(snapshots.map(snapshotKey));
    group.sweep((key) => !key.startsWith(SNAPSHOT_KEY) || present.has(key));
    forgetFilesIn(
      `${snapshotDirectory(entry.name)}/`,
      snapshots.map(({ name }) => name),
    );
  }

  /** The inode number of the flat file. */
  async inodeOf(entry: ImageEntry): Promise<bigint> {
    const { uuid } = await entry.view();
    return this.#numberOf(entry, FLAT_KEY, `flat ${lasting(entry, uuid)}`);
  }

  /**
   * Of `entries`, the image whose flat file has this inode number, or the file of one of its
   * snapshots, if that has been asked for before. `layer`: the snapshot's; null: the flat file.
   */
  fileWith(
    inode: bigint,
    entries: ImageEntry[],
  ): { entry: ImageEntry; layer: number | null } | undefined {
    for (const entry of entries) {
      const key = this.#ofImages.get(entry.identity)?.group.keyOf(inode);
      if (key === FLAT_KEY) return { entry, layer: null };
      if (key?.startsWith(SNAPSHOT_KEY) === true) {
        return { entry, layer: parseInt(key.slice(SNAPSHOT_KEY.length), 10) };
      }
    }
    return undefined;
  }

  /** For a file that cannot be read at this moment, in the list of a directory. */
  unreadable(path: string): Promise<Attributes> {
    return this.#withoutImage(REGULAR, 0, this.#inodes.hash(pathKey(path)));
  }

  ofRoot(): Promise<Attributes> {
    return this.#withoutImage(DIRECTORY, 0o777, ROOT_INODE);
  }

  ofControlDirectory(path: string): Promise<Attributes> {
    return this.#withoutImage(DIRECTORY, 0o555, this.#ofPath(path));
  }

  /** A control file of the mount with `size` bytes of text. */
  async ofMountControl(path: string, writable: boolean, size: number): Promise<Attributes> {
    const mask = writable ? 0o666 : 0o444;
    return { ...(await this.#withoutImage(REGULAR, mask, this.#ofPath(path))), size, nlink: 1 };
  }

  /** A directory that belongs to an image; of the image's permissions it has those in `mask`. */
  ofImageDirectory(found: Found, path: string, mask: number): Attributes {
    return { ...this.#ofImage(found, DIRECTORY, mask), ...this.#control(found.entry, path) };
  }

  /** A control file of an image with `size` bytes of text. */
  ofImageControl(found: Found, path: string, writable: boolean, size: number): Attributes {
    return {
      ...this.#ofImage(found, REGULAR, writable ? 0o666 : 0o444),
      ...this.#control(found.entry, path),
      size,
      blocks: 0,
    };
  }

  async ofSnapshot(found: Found, snapshot: SnapshotInfo): Promise<Attributes> {
    const { entry } = found;
    const { created, size, id, identity } = snapshot;
    const { uuid } = await entry.view();
    await this.#forgetSnapshots(entry);
    const number = this.#numberOf(
      entry,
      snapshotKey(snapshot),
      `snapshot ${lasting(entry, uuid)} ${id} ${identity}`,
    );
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
    if (!entry.retired)
      tellFlatFile(entry.name, status, number, image, entry.attachment.state !== 'detached');
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
  async #withoutImage(type: number, mask: number, number: bigint): Promise<Attributes> {
    const status = await fileStatus(this.#place.directory);
    return {
      mode: type | (status.mode & mask),
      uid: status.uid,
      gid: status.gid,
      size: BLOCK,
      ...halves(number),
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
  #control(entry: ImageEntry, path: string): Pick<Attributes, 'ino' | 'dev'> {
    return halves(this.#numberOf(entry, pathKey(path), pathKey(path)));
  }

  #ofPath(path: string): bigint {
    return this.#mountGroup.of(pathKey(path), pathKey(path));
  }
}

const FLAT_KEY = 'flat';
const SNAPSHOT_KEY = 'snapshot ';

function snapshotKey({ id, identity }: SnapshotInfo): string {
  return `${SNAPSHOT_KEY}${id} ${identity}`;
}

function pathKey(path: string): string {
  return `path ${path}`;
}

/**
 * What identifies an image in every mount: its uuid, which a copy of the file has too, and the
 * file's inode number, which a copy does not have.
 */
function lasting({ identity }: ImageEntry, uuid: string): string {
  return `${uuid} ${identity.split(':')[1] ?? ''}`;
}
