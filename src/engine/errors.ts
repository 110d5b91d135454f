/**
 * The only error class of Pcow. Every failure of the engine, the mount and the command line is a
 * PcowError: a stable code for programs, the errno that a system call would return, and a sentence
 * that names the image and the next step.
 */
import { constants } from 'node:os';

const { errno } = constants;

/** On Linux two errnos have two names: use the ones that the manual pages prefer. */
const NAME_OF_ERRNO = new Map(
  Object.entries(errno)
    .filter(([name]) => name !== 'ENOTSUP' && name !== 'EWOULDBLOCK')
    .map(([name, number]) => [number, name]),
);

/**
 * The errno of each code, unless the failing operation has a better one. Codes are never renamed.
 */
const ERRNO_OF_CODE = {
  /** An invalid argument: a size, a name, an offset. */
  PCOW_INVALID: errno.EINVAL,
  PCOW_EXISTS: errno.EEXIST,
  PCOW_NOT_FOUND: errno.ENOENT,
  /** Another process is the writer of the image; the message names it. */
  PCOW_LOCKED: errno.EBUSY,
  PCOW_BUSY: errno.EBUSY,
  /** Other images stand on it. */
  PCOW_IN_USE: errno.EBUSY,
  PCOW_NOT_AN_IMAGE: errno.EINVAL,
  /** A newer format, or something that this filesystem or machine does not support. */
  PCOW_UNSUPPORTED: errno.EOPNOTSUPP,
  PCOW_CORRUPT: errno.EIO,
  PCOW_IO: errno.EIO,
  PCOW_NO_SPACE: errno.ENOSPC,
  PCOW_READ_ONLY: errno.EROFS,
  PCOW_PERMISSION: errno.EACCES,
  PCOW_TOO_LARGE: errno.EFBIG,
  /** A limit of the format: too many snapshots, or too deep a chain. */
  PCOW_LIMIT: errno.EMLINK,
  PCOW_BASE_MISSING: errno.ENOENT,
  /** The file at the base's path is another image, or no longer has the layer. */
  PCOW_BASE_CHANGED: errno.ESTALE,
  PCOW_BASE_LOOP: errno.ELOOP,
  PCOW_BASE_OUTSIDE: errno.EPERM,
  PCOW_CANCELLED: errno.ECANCELED,
  PCOW_CLOSED: errno.EBADF,
  PCOW_NO_MEMORY: errno.ENOMEM,
  /** Bytes of a lazy image are needed that are still in a registry: PcowError.remote. */
  PCOW_REMOTE: errno.EAGAIN,
  /** The mount itself: its mountpoint, its daemon, FUSE. */
  PCOW_MOUNT: errno.EIO,
  /** An invalid command line. */
  PCOW_USAGE: errno.EINVAL,
} as const;

/**
 * The code of a failed system call, as in the engine's table (code_of_errno in
 * native/engine/error.cc); every other errno is PCOW_IO.
 */
const CODE_OF_ERRNO: Partial<Record<keyof typeof errno, PcowErrorCode>> = {
  ENOSPC: 'PCOW_NO_SPACE',
  EDQUOT: 'PCOW_NO_SPACE',
  EACCES: 'PCOW_PERMISSION',
  EPERM: 'PCOW_PERMISSION',
  ENOENT: 'PCOW_NOT_FOUND',
  ENOTDIR: 'PCOW_NOT_FOUND',
  EEXIST: 'PCOW_EXISTS',
  EROFS: 'PCOW_READ_ONLY',
  EFBIG: 'PCOW_TOO_LARGE',
  ENOMEM: 'PCOW_NO_MEMORY',
  EOPNOTSUPP: 'PCOW_UNSUPPORTED',
  ELOOP: 'PCOW_INVALID',
  ENAMETOOLONG: 'PCOW_INVALID',
  EISDIR: 'PCOW_INVALID',
};

/**
 * What an errno means in the answer of a mount or a monitor (ERRNO_OF_CODE), if that differs from
 * its meaning after a system call. If several codes share an errno, the least specific one is used.
 */
const CODE_OF_ANSWER: Partial<Record<keyof typeof errno, PcowErrorCode>> = {
  EINVAL: 'PCOW_INVALID',
  EBUSY: 'PCOW_BUSY',
  EMLINK: 'PCOW_LIMIT',
  ESTALE: 'PCOW_BASE_CHANGED',
  ELOOP: 'PCOW_BASE_LOOP',
  ECANCELED: 'PCOW_CANCELLED',
  EAGAIN: 'PCOW_REMOTE',
};

/** The code of a failed system call, by its (positive) errno. */
export function systemCodeOf(number: number): PcowErrorCode {
  return CODE_OF_ERRNO[NAME_OF_ERRNO.get(number) as keyof typeof errno] ?? 'PCOW_IO';
}

/** The code of an error of which another process of Pcow reports only the (positive) errno. */
export function codeOfAnswer(number: number): PcowErrorCode {
  return CODE_OF_ANSWER[NAME_OF_ERRNO.get(number) as keyof typeof errno] ?? systemCodeOf(number);
}

/**
 * What went wrong, for programs. Codes are never renamed. The most common ones: PCOW_INVALID (an
 * invalid argument), PCOW_NOT_FOUND, PCOW_EXISTS, PCOW_LOCKED (another process is the writer),
 * PCOW_BUSY (a file is open), PCOW_IN_USE (other images stand on it), PCOW_NO_SPACE, PCOW_CORRUPT,
 * PCOW_READ_ONLY, PCOW_PERMISSION, PCOW_CANCELLED, PCOW_CLOSED, PCOW_MOUNT.
 */
export type PcowErrorCode = keyof typeof ERRNO_OF_CODE;

/** The block of a lazy image that a reader needs, and that has not been fetched yet. */
export interface RemoteBlock {
  /** Of the image file that holds it, when it was opened. */
  path: string;
  /** Of that image. */
  uuid: string;
  /** The id of the layer in that file. */
  layer: number;
  /** The number of the block in the layer. */
  block: number;
}

/** The optional properties of a PcowError. */
export interface PcowErrorOptions {
  /** Positive; default: the errno of the code. */
  errno?: number | undefined;
  /** The error that caused it. */
  cause?: unknown;
  /**
   * The next step for the user, if the code alone does not imply it; null: the message already has
   * it.
   */
  next?: string | null | undefined;
  /** With PCOW_REMOTE, if a single block is missing. */
  remote?: RemoteBlock | undefined;
}

/**
 * An error of Pcow. The message is a sentence for people: it names the image, and usually the next
 * step.
 */
export class PcowError extends Error {
  /** For programs to test. */
  readonly code: PcowErrorCode;
  /** Positive, for example 17. */
  readonly errno: number;
  /** For example 'EEXIST'. */
  readonly errnoName: string;
  /**
   * The next step for the user, if the code alone does not imply it; null: the message already has
   * it.
   */
  readonly next: string | null | undefined;
  /** With PCOW_REMOTE, if a single block is missing. */
  readonly remote?: RemoteBlock;

  constructor(code: PcowErrorCode, message: string, options: PcowErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'PcowError';
    this.code = code;
    this.errno = options.errno ?? ERRNO_OF_CODE[code];
    this.next = options.next;
    if (options.remote !== undefined) this.remote = options.remote;
    this.errnoName = NAME_OF_ERRNO.get(this.errno) ?? `errno ${this.errno}`;
  }
}

/** Whether a thrown value is a PcowError, with one of the given codes if there are any. */
export function isPcowError(error: unknown, ...codes: PcowErrorCode[]): error is PcowError {
  return error instanceof PcowError && (codes.length === 0 || codes.includes(error.code));
}

/** The errors of the addon: an Error with the engine's code and errno. */
interface NativeError extends Error {
  code: PcowErrorCode;
  errno: number;
  remote?: RemoteBlock;
}

/**
 * Converts an error of the addon to a PcowError. Any other value is an error in this program, and
 * is returned unchanged.
 */
export function fromNative(error: unknown): unknown {
  if (!(error instanceof Error) || !('code' in error) || !(String(error.code) in ERRNO_OF_CODE))
    return error;
  const { code, errno, message, remote } = error as NativeError;
  return new PcowError(code, message, { errno, remote });
}

/** Runs work that calls the addon. Converts its errors to PcowErrors. */
export function translatedNow<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * Converts rejections of the addon to PcowErrors. Awaited here, so that the error's stack shows the
 * caller of the public method.
 */
export async function translated<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw fromNative(error);
  }
}
