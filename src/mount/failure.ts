/**
 * Turns any failure into an errno and a sentence. The mount's handlers turn exceptions into answers
 * only here.
 */
import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';

import { PcowError, type PcowErrorCode } from '../engine/index.js';

const { errno } = constants;

export type ErrnoName = keyof typeof errno;

/** A PcowError with an errno that differs from its code's own. */
export function refusal(name: ErrnoName, code: PcowError['code'], message: string): PcowError {
  return new PcowError(code, message, { errno: errno[name] });
}

/** The error for a path that names nothing. */
export function noSuchFile(path: string): PcowError {
  return new PcowError('PCOW_NOT_FOUND', `there is no ${path} in this mount`);
}

/** PCOW_IO for errors that are not Pcow's own. */
export function codeOf(error: unknown): PcowErrorCode {
  return error instanceof PcowError ? error.code : 'PCOW_IO';
}

/** Positive. An unexpected exception is EIO. */
export function errnoOf(error: unknown): number {
  if (error instanceof PcowError) {
    return error.errno;
  }
  // A failed system call in Node's fs has a negative `errno`.
  if (
    error instanceof Error &&
    'errno' in error &&
    typeof error.errno === 'number' &&
    error.errno < 0
  ) {
    return -error.errno;
  }
  return errno.EIO;
}

export function errnoNameOf(error: unknown): string {
  return getSystemErrorName(-errnoOf(error));
}

export function sentenceOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Whether a system call failed with one of these errors. */
export function isSystemError(error: unknown, ...names: ErrnoName[]): boolean {
  return error instanceof Error && 'code' in error && names.some((name) => error.code === name);
}
