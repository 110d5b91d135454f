/**
 * The native operations of a mount: once prepared, the bytes of flat files go from the kernel's requests straight to the engine, and
 * no read or write passes through libfuse or JavaScript. For src/mount only. The order of use:
 *
 *   const Fuse = requireFuse(directory);           // instead of require('fuse-native'), first thing in the process
 *   new Fuse(mountpoint, handlers, options).mount(...)     // afterwards interceptions() must be 1
 *   handlers.open:    cb(0, openHandle(image, { snapshot, writable }))   // the fh is at least FIRST_NATIVE_HANDLE
 *   handlers.release: closeHandle(fh) || …          // true where fh was a native handle
 *
 * Served natively for handles from openHandle: read, write, fsync, fallocate (punch hole, zero range), and open's
 * keep_cache: the kernel keeps a file's cached pages from one opening to the next as long as no rollback changed the content.
 *
 * Served natively for the flat files that the mount has told of (tellFlatFile): getattr, as long as their names stand for the same
 * image file and the image is open.
 *
 * The inode numbers of getattr and readdir: the upper half of one is taken from the field `dev`.
 *
 * Served natively for all paths: statfs (of the image directory, 64-bit), utimens (sets the times of NAME.pcow, with
 * nanoseconds; `touch -a` and -m too), and getxattr of names outside of `user.`, which the kernel asks for before each write.
 *
 * Everything else, and every request with another fh, goes to the JavaScript handlers, which must therefore choose their own
 * handle numbers below FIRST_NATIVE_HANDLE. Files open under those are read and written past the page cache (direct_io). The
 * handlers for read, write, fsync, statfs, utimens and open must be given all the same: where the table did not take hold
 * (interceptions() is 0 after the mount) they serve everything.
 */
import { translatedNow } from './errors.js';
import type { Image } from './image.js';
import { addon, requireModule, type Traffic } from './native.js';
import { checkFlag, checkOptions, checkPath, checkSnapshotName } from './validate.js';

/** Native handle numbers start here; a mount's own (for control files) are smaller. They survive fuse-native's 32-bit signed field. */
export const FIRST_NATIVE_HANDLE = 0x4000_0000;

/** Of an image file. */
export interface FileIdentity {
  device: bigint;
  inode: bigint;
}

export interface HandleOptions {
  /** Default: the active layer. */
  snapshot?: string | undefined;
  writable: boolean;
  /** The image's writer is a monitor: this opening of it only reads, and nobody keeps cached pages of it up to date. Default: false. */
  lent?: boolean | undefined;
}

export interface MoveOptions extends HandleOptions {
  /** Pages that the kernel writes back are refused with EBUSY, because they are older than the image. Default: false. */
  refusesCached?: boolean | undefined;
}

/**
 * What a native operation waits for: 'open': may the process `pid` (a thread of it) open the flat file of a lent image under this
 * handle; 'write': may somebody write again who has it open. The answer to 'write' comes when the handle has its writer back.
 */
export interface Question {
  kind: 'open' | 'write';
  fh: number;
  pid: number;
}

/** Yes; yes, but past the page cache; or no, with an errno (positive). */
export type QuestionAnswer = 'yes' | 'past the page cache' | { errno: number };

/**
 * Loads the operations table, then libfuse, then fuse-native, in the order that lets the table stand between the last two, and
 * returns what fuse-native exports. `directory` is the image directory. One mount in a process is served natively; a second one
 * gets the JavaScript handlers.
 */
export function requireFuse(directory: string): unknown {
  checkPath('the image directory', directory);
  const { lib } = requireModule('fuse-shared-library') as { lib: string };
  translatedNow(() => {
    addon().fuseLoad(lib, directory);
  });
  return requireModule('fuse-native');
}

/** How many mounts of this process the table was put under: 1 after a mount that it took hold of, else 0. */
export function interceptions(): number {
  return addon().fuseInterceptions();
}

/** How many requests were served natively since the process began. */
export function nativeRequests(): number {
  return addon().fuseRequests();
}

/** What was served natively through one opening of an image, also when it is closed. */
export function trafficOf(image: Image): Traffic {
  return addon().fuseTraffic(image.native);
}

/**
 * For getattr: `name` in the mount is the flat file of this open image. `device` and `inode` are those of the image file, `number` is the
 * flat file's inode number. Also where the mount has no native operations: then nobody asks.
 */
export function tellFlatFile(name: string, { device, inode }: FileIdentity, number: bigint, image: Image): void {
  addon().fuseTellFlatFile(name, device, inode, number, image.native);
}

export type { Traffic };

/** Before the mount: `ended` is called once when the mount is over, whoever ended it. Only where the table takes hold. */
export function onSessionEnd(ended: () => void): void {
  addon().fuseOnEnd(ended);
}

/** A handle number for open's callback. The image stays in memory until closeHandle; once it is closed, requests get EBADF. */
export function openHandle(image: Image, options: HandleOptions): number {
  checkOptions('the options of openHandle', options, ['snapshot', 'writable', 'lent']);
  checkFlag('the option "writable"', options.writable);
  if (options.snapshot !== undefined) checkSnapshotName(options.snapshot);
  const { snapshot = '', writable, lent = false } = options;
  return translatedNow(() => addon().fuseOpenHandle(image.native, snapshot, writable, lent));
}

/**
 * Lets an open handle go on with another opening of the same image. `writable` where the opening is not: its writes are EBUSY.
 * Requests under way end with the old one.
 */
export function moveHandle(fh: number, image: Image, options: MoveOptions): void {
  checkOptions('the options of moveHandle', options, ['snapshot', 'writable', 'lent', 'refusesCached']);
  const { snapshot = '', writable, lent = false, refusesCached = false } = options;
  translatedNow(() => {
    addon().fuseMoveHandle(fh, image.native, snapshot, writable, lent, refusesCached);
  });
}

/** Before the mount. `answer` never rejects. */
export function onQuestion(answer: (question: Question) => Promise<QuestionAnswer>): void {
  addon().fuseOnQuestion((id, kind, fh, pid) => {
    void answer({ kind, fh, pid }).then((it) => {
      addon().fuseAnswer(id, typeof it === 'object' ? -it.errno : it === 'yes' ? 0 : 1);
    });
  });
}

/** How many reads of a lent image have left pages in the kernel's cache, through this opening of it. */
export function cachedReads(image: Image): number {
  return addon().fuseCachedReads(image.native);
}

/** The thread that opened the file, as this process numbers it; null where that is not known. */
export function openerOf(fh: number): number | null {
  return addon().fuseOpener(fh) || null;
}

/** For release: lets a handle go. False where it is not one of ours. Requests under way end in peace. */
export function closeHandle(fh: number): boolean {
  return addon().fuseCloseHandle(fh);
}
