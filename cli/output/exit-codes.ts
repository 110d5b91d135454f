/**
 * The exit codes of `pcow` and `pcow-img`. They are a contract: a number never changes its meaning.
 * The same failure has the same code whether or not the image is mounted.
 */
import type { PcowErrorCode } from '../../src/engine/errors.js';

export interface ExitCode {
  exit: number;
  /** What it means, for people. */
  meaning: string;
  /** The error codes with this exit code. */
  codes: readonly PcowErrorCode[];
}

/** For the doctor, which itself has not failed. */
export const UNFIT = 12;

/** For commands that search for faults and have completed the search. */
export const FOUND_DAMAGE = 13;
export const FOUND_LEAKS = 14;
/** For a repair: no damage is left, but data is missing. */
export const LOST_DATA = 15;

export const exitCodes = [
  { exit: 0, meaning: 'done', codes: [] },
  { exit: 1, meaning: 'a failure inside Pcow itself', codes: ['PCOW_CLOSED', 'PCOW_NO_MEMORY'] },
  { exit: 2, meaning: 'the command line is wrong', codes: ['PCOW_USAGE'] },
  {
    exit: 3,
    meaning: 'a value is wrong: a size, a name, a file that is not an image of this kind',
    codes: [
      'PCOW_INVALID',
      'PCOW_TOO_LARGE',
      'PCOW_LIMIT',
      'PCOW_NOT_AN_IMAGE',
      'PCOW_UNSUPPORTED',
    ],
  },
  { exit: 4, meaning: 'an image or a snapshot does not exist', codes: ['PCOW_NOT_FOUND'] },
  { exit: 5, meaning: 'the target already exists', codes: ['PCOW_EXISTS'] },
  {
    exit: 6,
    meaning: 'in use: by another process, or other images stand on it',
    codes: ['PCOW_LOCKED', 'PCOW_BUSY', 'PCOW_IN_USE'],
  },
  { exit: 7, meaning: 'not permitted, or read-only', codes: ['PCOW_PERMISSION', 'PCOW_READ_ONLY'] },
  { exit: 8, meaning: 'the disk is full', codes: ['PCOW_NO_SPACE'] },
  {
    exit: 9,
    meaning: 'the image is damaged, or could not be read or written',
    codes: ['PCOW_CORRUPT', 'PCOW_IO'],
  },
  {
    exit: 10,
    meaning: 'the base is missing, changed, circular, or outside of the directory',
    codes: ['PCOW_BASE_MISSING', 'PCOW_BASE_CHANGED', 'PCOW_BASE_LOOP', 'PCOW_BASE_OUTSIDE'],
  },
  { exit: 11, meaning: 'the mount could not be made, reached or ended', codes: ['PCOW_MOUNT'] },
  { exit: UNFIT, meaning: '“pcow doctor” found what will not work', codes: [] },
  { exit: FOUND_DAMAGE, meaning: '“check” was completed, and has found damage', codes: [] },
  {
    exit: FOUND_LEAKS,
    meaning: '“check” was completed, and has found only bytes in free space',
    codes: [],
  },
  {
    exit: LOST_DATA,
    meaning: '“check --repair” has repaired the image, but could not restore all of its data',
    codes: [],
  },
  {
    exit: 16,
    meaning: 'bytes of a lazy image are needed that are still in a registry',
    codes: ['PCOW_REMOTE'],
  },
  { exit: 130, meaning: 'interrupted; the image is intact', codes: ['PCOW_CANCELLED'] },
] as const satisfies readonly ExitCode[];

const INTERNAL = 1;

/** The exit code for an error's code. Anything unknown is a fault in Pcow. */
export function exitCodeOf(code: unknown): number {
  const table: readonly ExitCode[] = exitCodes;
  return table.find((entry) => entry.codes.some((known) => known === code))?.exit ?? INTERNAL;
}
