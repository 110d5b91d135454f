/**
 * The native operations of a mount: the bytes of flat files go from the kernel's requests straight
 * to the engine, and no read or write passes through libfuse or JavaScript. For src/mount only. The
 * order of use:
 *
 *   // Instead of require('fuse-native'), before anything else in the process.
 *   const Fuse = requireFuse(directory);
 *   // Afterwards interceptions() must be 1.
 *   new Fuse(mountpoint, handlers, options).mount(...)
 *   // The fh is at least FIRST_NATIVE_HANDLE.
 *   handlers.open:    cb(0, openHandle(image, { snapshot, writable }))
 *   // Returns true if the fh was a native handle.
 *   handlers.release: closeHandle(fh) || …
 *
 * For handles from openHandle these are served natively: read, write, fsync, fallocate (punch hole,
 * zero range), and open's keep_cache: the kernel keeps a file's cached pages from one open to the
 * next, as long as no rollback has changed the content.
 *
 * For flat files that the mount has registered (tellFlatFile), getattr is served natively, as long
 * as the name refers to the same image file and the image is open. The kernel keeps such
 * attributes, and those of the mountpoint, until they change: docs/control-files.md, "Flat files".
 *
 * In the results of getattr and readdir, the field `dev` has the upper half of the inode number.
 *
 * For flat files that the mount has granted (grantOpens), open and release are served natively.
 *
 * For all paths these are served natively: statfs (of the image directory, 64-bit), utimens (sets
 * the times of NAME.pcow, with nanoseconds; also for `touch -a` and -m), and getxattr of names
 * outside of `user.`, which the kernel requests before each write.
 *
 * Everything else, and every request with another fh, goes to the JavaScript handlers. So these
 * must choose their own handle numbers below FIRST_NATIVE_HANDLE. Files that are open with such
 * numbers are read and written without the page cache (direct_io). The handlers for read, write,
 * fsync, statfs, utimens and open are required nevertheless: if the native operations are not
 * active (interceptions() is 0 after the mount), they serve everything.
 */
import { constants } from 'node:os';
import { type RemoteBlock, translatedNow } from './errors.js';
import type { Image } from './image.js';
import { addon, requireModule, type Traffic } from './native.js';
import { checkFlag, checkOptions, checkPath, checkSnapshotName } from './validate.js';

/**
 * The handle numbers of native operations start here; a mount's own numbers (for control files) are
 * smaller. They survive fuse-native's signed 32-bit field.
 */
export const FIRST_NATIVE_HANDLE = 0x4000_0000;

/** Identifies an image file. */
export interface FileIdentity {
  device: bigint;
  inode: bigint;
}

export interface HandleOptions {
  /** Default: the active layer. */
  snapshot?: string | undefined;
  writable: boolean;
  /**
   * A monitor is the image's writer. This opening of the image only reads, and cached pages of it
   * may become stale. Default: false.
   */
  lent?: boolean | undefined;
}

export interface MoveOptions extends HandleOptions {
  /**
   * The kernel's write-back is refused with EBUSY, because its pages are older than the image.
   * Default: false.
   */
  refusesCached?: boolean | undefined;
}

/**
 * A question for which a native operation waits. 'open': may the process with the thread `pid` open
 * the flat file of a lent image with this handle? 'write': may a process that has the file open
 * write again? The answer to 'write' comes when the handle has its writer back.
 */
export interface Question {
  kind: 'open' | 'write';
  fh: number;
  pid: number;
}

/** Yes; yes, but without the page cache; or no, with a positive errno. */
export type QuestionAnswer = 'yes' | 'past the page cache' | { errno: number };

/**
 * Loads the operations table, then libfuse, then fuse-native. This order puts the table between the
 * last two. Returns the exports of fuse-native. `directory` is the image directory. One mount of a
 * process is served natively; a second one uses the JavaScript handlers.
 */
export function requireFuse(directory: string): unknown {
  checkPath('the image directory', directory);
  const { lib } = requireModule('fuse-shared-library') as { lib: string };
  translatedNow(() => {
    addon().fuseLoad(lib, directory);
  });
  return requireModule('fuse-native');
}

/**
 * How many mounts of this process use the table: 1 after a mount with native operations, else 0.
 */
export function interceptions(): number {
  return addon().fuseInterceptions();
}

/** The number of requests served natively since the process began. */
export function nativeRequests(): number {
  return addon().fuseRequests();
}

/** What was served natively through one opening of an image, which may be closed. */
export function trafficOf(image: Image): Traffic {
  return addon().fuseTraffic(image.native);
}

/**
 * For getattr: `name` in the mount is the flat file of this open image. `device` and `inode` are
 * those of the image file; `number` is the flat file's inode number; `lent`: a monitor is the
 * image's writer. Without native operations it has no effect.
 */
export function tellFlatFile(
  name: string,
  { device, inode }: FileIdentity,
  number: bigint,
  image: Image,
  lent: boolean,
): void {
  addon().fuseTellFlatFile(name, device, inode, number, image.native, lent);
}

/** What tellFlatFile() registered for this name is no longer true. */
export function flatFileChanged(name: string): void {
  addon().fuseFlatFileChanged(name);
}

/** The attributes of any flat file may have changed: the kernel must ask for all of them again. */
export function flatFilesChanged(): void {
  addon().fuseFlatFilesChanged();
}

/** The image with the flat file `name` is gone, or has another name now. */
export function forgetFlatFile(name: string): void {
  addon().fuseForgetFlatFile(name);
}

/**
 * Files of snapshots are gone: those in `directory` (a path in the mount, with a slash at its end)
 * whose names are not in `present`.
 */
export function forgetFilesIn(directory: string, present: string[]): void {
  addon().fuseForgetFilesIn(directory, present);
}

/** For tests: the number of files about which the native operations remember something. */
export function rememberedFiles(): number {
  return addon().fuseRemembered();
}

export type { Traffic };

/**
 * Before the mount: `ended` is called once when the mount has ended, for whatever reason. Works
 * only with native operations.
 */
export function onSessionEnd(ended: () => void): void {
  addon().fuseOnEnd(ended);
}

/**
 * Returns a handle number for open's callback. The image stays in memory until closeHandle. After
 * the image has been closed, requests fail with EBADF.
 */
export function openHandle(image: Image, options: HandleOptions): number {
  checkOptions('the options of openHandle', options, ['snapshot', 'writable', 'lent']);
  checkFlag('the option "writable"', options.writable);
  if (options.snapshot !== undefined) checkSnapshotName(options.snapshot);
  const { snapshot = '', writable, lent = false } = options;
  return translatedNow(() => addon().fuseOpenHandle(image.native, snapshot, writable, lent));
}

/**
 * Moves an open handle to another opening of the same image. If `writable` is set and the opening
 * is not, writes fail with EBUSY. Requests in progress finish with the old opening.
 */
export function moveHandle(fh: number, image: Image, options: MoveOptions): void {
  checkOptions('the options of moveHandle', options, [
    'snapshot',
    'writable',
    'lent',
    'refusesCached',
  ]);
  const { snapshot = '', writable, lent = false, refusesCached = false } = options;
  translatedNow(() => {
    addon().fuseMoveHandle(fh, image.native, snapshot, writable, lent, refusesCached);
  });
}

/**
 * From now on the flat file `name` is opened and closed natively, with this opening of its image:
 * also for writing if the opening is for writing. tellFlatFile() must have registered the file.
 */
export function grantOpens(name: string, image: Image): void {
  addon().fuseGrantOpens(name, image.native);
}

/**
 * Ends the grant of grantOpens(), and returns the files that were opened through it and are still
 * open. When a process closes one of them, the function given to onRelease() is called, and must
 * close the handle.
 */
export function takeBackOpens(name: string): { fh: number; writable: boolean }[] {
  return addon().fuseTakeBackOpens(name);
}

/** Call it before the mount. */
export function onRelease(released: (fh: number) => void): void {
  addon().fuseOnRelease(released);
}

/**
 * Call it before the mount. `answer` must not reject. `fetch`: a request needs this block of a lazy
 * image; when it resolves, the request is tried again, and if it rejects, that is an I/O error.
 */
export function onQuestion(
  answer: (question: Question) => Promise<QuestionAnswer>,
  fetch: (block: RemoteBlock) => Promise<void>,
): void {
  addon().fuseOnQuestion((...question) => {
    const [id, kind] = question;
    if (kind === 'fetch') {
      void fetch(question[2]).then(
        () => {
          addon().fuseAnswer(id, 0);
        },
        () => {
          addon().fuseAnswer(id, -constants.errno.EIO);
        },
      );
      return;
    }
    const [, , fh, pid] = question;
    void answer({ kind, fh, pid }).then((it) => {
      addon().fuseAnswer(id, typeof it === 'object' ? -it.errno : it === 'yes' ? 0 : 1);
    });
  });
}

/**
 * How many reads of a lent image have left pages in the kernel's cache, through this opening of it.
 */
export function cachedReads(image: Image): number {
  return addon().fuseCachedReads(image.native);
}

/** The thread that opened the file, as this process sees it; null if that is not known. */
export function openerOf(fh: number): number | null {
  return addon().fuseOpener(fh) || null;
}

/**
 * For release: closes a handle. Returns false if it is not a native one. Requests in progress
 * finish.
 */
export function closeHandle(fh: number): boolean {
  return addon().fuseCloseHandle(fh);
}
