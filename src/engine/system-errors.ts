/** Failed system calls, in words for people. The command line uses this for whatever has no sentence of its own. */
import { getSystemErrorMap } from 'node:util';
import { systemCodeOf, type PcowErrorCode } from './errors.js';
import { quote } from './quote.js';

/** A failed system call of Node's. */
export interface SystemError {
  /** For example `ENOSPC`. */
  name: string;
  /** Positive. */
  errno: number;
  syscall: string;
  /** What it was about; null where Node does not say. */
  path: string | null;
  /** The end of a sentence: why. */
  meaning: string;
}

/** A sentence, the next step, and the code that gives the exit code. */
export interface Explanation {
  code: PcowErrorCode;
  message: string;
  hint: string | undefined;
}

/** null for an error that no system call has brought. */
export function systemErrorOf(error: unknown): SystemError | null {
  if (!(error instanceof Error) || !('syscall' in error) || !('errno' in error)) return null;
  const { syscall, errno } = error;
  if (typeof syscall !== 'string' || typeof errno !== 'number') return null;
  const [name, meaning] = getSystemErrorMap().get(errno) ?? [`errno ${-errno}`, 'an error of the system'];
  const path = 'path' in error && typeof error.path === 'string' ? error.path : null;
  return { name, errno: -errno, syscall, path, meaning: REASONS[name]?.why ?? meaning };
}

/** What a failed system call means, and what to do about it; null where that was not it. `subject`: in place of a path that is not known. */
export function explain(error: unknown, subject = 'a file that it needs'): Explanation | null {
  const known = systemErrorOf(error);
  if (known === null) return null;
  const { name, errno, syscall, path, meaning } = known;
  if (syscall === 'uv_cwd') {
    return { code: 'PCOW_NOT_FOUND', message: 'the working directory was removed', hint: CHANGE_DIRECTORY };
  }
  const what = path === null || path === '' ? subject : quote(path);
  const reason = REASONS[name];
  return {
    code: reason?.code ?? systemCodeOf(errno),
    message: `${what} can't be ${participle(syscall)}: ${meaning}`,
    hint: reason?.next,
  };
}

export const CHANGE_DIRECTORY = 'change to a directory that is there, or write whole paths';

/** Whether relative paths lead nowhere. */
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
  /** The next step; left out: that of the code (cli/output/errors.ts). */
  next?: string;
  /** Left out: the one that the engine has for this errno. */
  code?: PcowErrorCode;
}

/** Those that people meet. For the others Node's own words do. */
const REASONS: Partial<Record<string, Reason>> = {
  ENOSPC: { why: 'its disk is full', next: 'free space there, or use another disk' },
  EDQUOT: { why: 'the disk quota of this user is used up', next: 'free space there, or have the quota raised' },
  EACCES: { why: 'this user has no right to do that', next: 'use the user who owns it, or have its mode changed' },
  EPERM: { why: 'this user has no right to do that', next: 'use the user who owns it, or root' },
  EROFS: { why: 'its file system is mounted read-only', next: 'mount that for writing, or use another place' },
  EMFILE: {
    why: 'this process may not open any more files',
    next: 'raise the limit, then try again: ulimit -n 1024',
  },
  ENFILE: {
    why: 'this machine may not open any more files',
    next: 'end what has many open, or raise the limit: sysctl fs.file-max',
  },
  ENOMEM: { why: 'there is not enough memory', next: 'end what uses much of it, then try again' },
  ENAMETOOLONG: { why: 'its name is too long for the file system', next: 'choose a shorter one' },
  ELOOP: { why: 'a symbolic link leads back to itself', next: 'name the file itself' },
  ENOENT: { why: 'it is not there', next: 'check the path' },
  ENOTDIR: { why: 'a part of its path is not a directory', next: 'check the path' },
  EISDIR: { why: 'it is a directory', next: 'name a file' },
  EEXIST: { why: 'it exists already', next: 'choose another name' },
  EFBIG: { why: 'it would be larger than this process may write (ulimit -f), or than its file system takes' },
  EIO: { why: 'its disk reports an error', next: 'see what the kernel says of it: dmesg' },
  ENOTCONN: {
    why: 'the mount that it lies in has died',
    next: 'clear it away, then mount the directory again; nothing is lost: pcow umount MOUNTPOINT',
    code: 'PCOW_MOUNT',
  },
  ECONNABORTED: {
    why: 'the mount that it lies in has died',
    next: 'clear it away, then mount the directory again; nothing is lost: pcow umount MOUNTPOINT',
    code: 'PCOW_MOUNT',
  },
};

/** The next step where a system call has failed so, whatever it was for. */
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
