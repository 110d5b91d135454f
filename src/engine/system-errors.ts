/**
 * Explains failed system calls to people. The command line uses this for errors without a sentence
 * of their own.
 */
import { getSystemErrorMap } from 'node:util';
import { systemCodeOf, type PcowErrorCode } from './errors.js';
import { quote } from './quote.js';

/** A failed system call in Node. */
export interface SystemError {
  /** For example `ENOSPC`. */
  name: string;
  /** Positive. */
  errno: number;
  syscall: string;
  /** The file concerned; null if Node does not say. */
  path: string | null;
  /** The reason, as the end of a sentence. */
  meaning: string;
}

/** A sentence, the next step, and the code that determines the exit code. */
export interface Explanation {
  code: PcowErrorCode;
  message: string;
  hint: string | undefined;
}

/** Returns null for an error that does not come from a system call. */
export function systemErrorOf(error: unknown): SystemError | null {
  if (!(error instanceof Error) || !('syscall' in error) || !('errno' in error)) return null;
  const { syscall, errno } = error;
  if (typeof syscall !== 'string' || typeof errno !== 'number') return null;
  const [name, meaning] = getSystemErrorMap().get(errno) ?? [
    `errno ${-errno}`,
    'an error of the system',
  ];
  const path = 'path' in error && typeof error.path === 'string' ? error.path : null;
  return { name, errno: -errno, syscall, path, meaning: REASONS[name]?.why ?? meaning };
}

/**
 * What a failed system call means, and what to do; null if it was no system call. `subject`: used
 * if the path is unknown.
 */
export function explain(error: unknown, subject = 'a file that it needs'): Explanation | null {
  const known = systemErrorOf(error);
  if (known === null) return null;
  const { name, errno, syscall, path, meaning } = known;
  if (syscall === 'uv_cwd') {
    return {
      code: 'PCOW_NOT_FOUND',
      message: 'the working directory was removed',
      hint: CHANGE_DIRECTORY,
    };
  }
  const what = path === null || path === '' ? subject : quote(path);
  const reason = REASONS[name];
  return {
    code: reason?.code ?? systemCodeOf(errno),
    message: `${what} can't be ${participle(syscall)}: ${meaning}`,
    hint: reason?.next,
  };
}

export const CHANGE_DIRECTORY = 'change to a directory that exists, or use absolute paths';

/** Whether relative paths are invalid, because the working directory was removed. */
export function workingDirectoryIsGone(): boolean {
  try {
    process.cwd();
    return false;
  } catch {
    return true;
  }
}

interface Reason {
  why: string;
  /** The next step; default: that of the code (cli/output/errors.ts). */
  next?: string;
  /** Default: the engine's code for this errno. */
  code?: PcowErrorCode;
}

/** Errors that users meet. For the others Node's own text is used. */
const REASONS: Partial<Record<string, Reason>> = {
  ENOSPC: { why: 'its disk is full', next: 'free space there, or use another disk' },
  EDQUOT: {
    why: 'the disk quota of this user is used up',
    next: 'free space there, or have the quota raised',
  },
  EACCES: {
    why: 'this user may not do that',
    next: 'run as the user who owns it, or have its mode changed',
  },
  EPERM: { why: 'this user may not do that', next: 'run as the user who owns it, or as root' },
  EROFS: {
    why: 'its filesystem is mounted read-only',
    next: 'mount it for writing, or use another filesystem',
  },
  EMFILE: {
    why: 'this process may not open any more files',
    next: 'raise the limit, then try again: ulimit -n 1024',
  },
  ENFILE: {
    why: 'this machine may not open any more files',
    next: 'end programs with many open files, or raise the limit: sysctl fs.file-max',
  },
  ENOMEM: {
    why: 'there is not enough memory',
    next: 'end programs that use much memory, then try again',
  },
  ENAMETOOLONG: { why: 'its name is too long for the filesystem', next: 'choose a shorter one' },
  ELOOP: { why: 'a symbolic link leads back to itself', next: 'name the file itself' },
  ENOENT: { why: 'it does not exist', next: 'check the path' },
  ENOTDIR: { why: 'a part of its path is not a directory', next: 'check the path' },
  EISDIR: { why: 'it is a directory', next: 'name a file' },
  EEXIST: { why: 'it exists already', next: 'choose another name' },
  EFBIG: { why: 'it would exceed the limit of this process (ulimit -f) or of its filesystem' },
  EIO: { why: 'its disk reports an error', next: 'see the messages of the kernel: dmesg' },
  ENOTCONN: {
    why: 'the mount that contains it has died',
    next: 'remove it, then mount the directory again; nothing is lost: pcow umount MOUNTPOINT',
    code: 'PCOW_MOUNT',
  },
  ECONNABORTED: {
    why: 'the mount that contains it has died',
    next: 'remove it, then mount the directory again; nothing is lost: pcow umount MOUNTPOINT',
    code: 'PCOW_MOUNT',
  },
};

/** The next step after this errno, whatever the system call was for. */
export function adviceOn(errnoName: string): string | undefined {
  return REASONS[errnoName]?.next;
}

/** For “can't be …”. */
function participle(syscall: string): string {
  if (/^(write|ftruncate|truncate|fsync|fdatasync)/.test(syscall)) return 'written';
  if (/^mk|^symlink|^link/.test(syscall)) return 'made';
  if (/^(unlink|rmdir|rm)/.test(syscall)) return 'removed';
  if (/^(rename|copyfile|chmod|chown)/.test(syscall)) return PAST[syscall] ?? 'changed';
  return /^(open|access)/.test(syscall) ? 'opened' : syscall.startsWith('spawn') ? 'run' : 'read';
}

const PAST: Partial<Record<string, string>> = { rename: 'renamed', copyfile: 'copied' };
